/** Sentence tokens and a typed change to a server, hits back, over Connect: HTTP/1.1 is enough. */
import { create, toBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient, type Client, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import {
  Retrieval, SearchRequestSchema, type DescribeResponse, type FilterSchema, type SearchResponse,
} from "../gen/asymcir_protos/v1/retrieval_pb.js";
import { ServerError, type ServerErrorKind } from "./errors.js";
import { packTokens, type TokenEncoding } from "./tokens.js";

export interface ClientOptions {
  /** For each call, ms. Default: 10,000. */
  timeoutMs?: number;
  /** Default: "fp16". */
  tokenEncoding?: TokenEncoding;
  /** Sent as `Authorization: Bearer KEY`. */
  key?: string;
  fetch?: typeof globalThis.fetch;
}

export interface Query {
  /** [L, D]. */
  tokens: Float32Array;
  length: number;
  wordSpace: string;
  modifier?: string;
  gallery?: string;
  topK?: number;
  excludedIds?: string[];
  withMetadata?: boolean;
  filter?: MessageInitShape<typeof FilterSchema>;
  everyPicture?: boolean;
  /** Answer a picture that is there more than once by its best copy only. */
  collapseDuplicates?: boolean;
  signal?: AbortSignal;
}

export interface Answer extends SearchResponse {
  /** The message, without HTTP's headers. */
  sentBytes: number;
  roundTripMs: number;
}

const RETRY_MS = 200;

export class RetrievalClient {
  private readonly client: Client<typeof Retrieval>;
  private readonly timeoutMs: number;
  private readonly tokenEncoding: TokenEncoding;

  /** @param url of the server, such as https://search.example. */
  constructor(readonly url: string, options: ClientOptions = {}) {
    this.timeoutMs = options.timeoutMs ?? 10_000;
    this.tokenEncoding = options.tokenEncoding ?? "fp16";
    const identify: Interceptor = (next) => (request) => {
      if (options.key) request.header.set("authorization", `Bearer ${options.key}`);
      return next(request);
    };
    this.client = createClient(
      Retrieval,
      createConnectTransport({ baseUrl: url, useBinaryFormat: true, interceptors: [identify], fetch: options.fetch }),
    );
  }

  /** Asks what the server holds. Throws ServerError. */
  async describe(signal?: AbortSignal): Promise<DescribeResponse> {
    return this.call((timeoutMs) => this.client.describe({}, { timeoutMs, signal }), signal);
  }

  /** Searches. Throws ServerError, TokensError; an `AbortError` where `signal` says so. */
  async search(query: Query): Promise<Answer> {
    const request = create(SearchRequestSchema, {
      tokens: packTokens(query.tokens, query.length, this.tokenEncoding),
      wordSpace: query.wordSpace,
      modifier: query.modifier ?? "",
      gallery: query.gallery ?? "",
      topK: query.topK ?? 0,
      excludedIds: query.excludedIds ?? [],
      withMetadata: query.withMetadata ?? true,
      filter: query.filter,
      everyPicture: query.everyPicture ?? false,
      collapseDuplicates: query.collapseDuplicates ?? false,
    });
    const started = performance.now();
    const response = await this.call(
      (timeoutMs) => this.client.search(request, { timeoutMs, signal: query.signal }),
      query.signal,
    );
    return Object.assign(response, {
      sentBytes: toBinary(SearchRequestSchema, request).length,
      roundTripMs: performance.now() - started,
    });
  }

  /** Calls only read, so one that a server did not take is sent once more. */
  private async call<T>(attempt: (timeoutMs: number) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const deadline = performance.now() + this.timeoutMs;
    for (let last = false; ; last = true) {
      try {
        return await attempt(Math.max(1, Math.ceil(deadline - performance.now())));
      } catch (error) {
        if (signal?.aborted) throw new DOMException("the call was aborted", "AbortError");
        const known = toServerError(error, this.url);
        if (known.kind !== "unreachable" || last || performance.now() + RETRY_MS > deadline) throw known;
        await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
      }
    }
  }
}

const KINDS: Partial<Record<Code, ServerErrorKind>> = {
  [Code.InvalidArgument]: "refused",
  [Code.OutOfRange]: "refused",
  [Code.FailedPrecondition]: "space",
  [Code.NotFound]: "not-found",
  [Code.Unimplemented]: "not-found",
  [Code.Unauthenticated]: "key",
  [Code.PermissionDenied]: "key",
  [Code.ResourceExhausted]: "busy",
  [Code.Unavailable]: "unreachable",
  [Code.DeadlineExceeded]: "timeout",
};

/** Turns what Connect throws into one of our errors. */
export function toServerError(error: unknown, url: string): ServerError {
  const known = ConnectError.from(error);
  // fetch fails with a TypeError where nothing answers; Connect knows no code for that.
  const unreachable = known.cause instanceof TypeError || error instanceof TypeError;
  const kind = unreachable ? "unreachable" : (KINDS[known.code] ?? "internal");
  return new ServerError(unreachable ? `no server answers at ${url}` : known.rawMessage, kind);
}
