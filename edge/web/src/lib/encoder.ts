/** A picture to its sentence tokens, in a worker, so that a page never waits for it. */
import { wrap, type Remote } from "comlink";
import type { DeviceBundle } from "./bundle.js";
import { EncoderError, ImageError } from "./errors.js";
import type { RuntimeFiles, SessionOptions } from "./session.js";
import type { Outcome, Picture, Source, WorkerApi } from "./worker.js";

export interface EncoderOptions {
  runtime?: RuntimeFiles;
  /** Default: half as many as cores, at most 4, where the page is cross-origin isolated; otherwise 1. */
  threads?: number;
  /** Starts the worker; for bundlers that want to see it. */
  startWorker?: () => Worker;
}

/** What a session is opened with for a bundle. */
export function sessionOptions(bundle: DeviceBundle, options: Pick<EncoderOptions, "runtime" | "threads"> = {}): SessionOptions {
  return {
    runtime: options.runtime,
    threads: options.threads,
    sentenceLength: bundle.sentenceLength,
    wordWidth: bundle.wordWidth,
    floatCompute: bundle.precision === "fp32" && bundle.manifest.properties.weight_storage === "int8",
  };
}

export class QueryEncoder {
  private constructor(
    readonly bundle: DeviceBundle,
    readonly threads: number,
    private readonly worker: Worker,
    private readonly remote: Remote<WorkerApi>,
    private readonly failed: Promise<never>,
  ) {}

  /** @throws EncoderError: the runtime or the graph does not open in this browser. */
  static async open(bundle: DeviceBundle, options: EncoderOptions = {}): Promise<QueryEncoder> {
    const worker = (options.startWorker ?? startWorker)();
    const failed = new Promise<never>((_, reject) => {
      worker.addEventListener("error", (event) => reject(new EncoderError(`the encoder's worker does not run here: ${event.message ?? "its script did not load"}`)));
    });
    failed.catch(() => undefined);
    const remote = wrap<WorkerApi>(worker);
    try {
      const opened = unwrap(await Promise.race([remote.open(bundle.encoder, sessionOptions(bundle, options)), failed]));
      return new QueryEncoder(bundle, opened.threads, worker, remote, failed);
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  /**
   * Encodes a picture file, a bitmap, or opaque pixels.
   *
   * @param withMaps tell what each token looks at, too; it costs nothing measurable.
   * @throws ImageError, EncoderError
   */
  async encode(source: Source, withMaps = true): Promise<Picture> {
    return unwrap(await Promise.race([this.remote.encode(source, withMaps), this.failed]));
  }

  close(): void {
    this.worker.terminate();
  }
}

function startWorker(): Worker {
  return new Worker(new URL("./worker.ts", import.meta.url), { type: "module", name: "asymcir-encoder" });
}

function unwrap<T>(outcome: Outcome<T>): T {
  if ("value" in outcome) return outcome.value;
  const { name, message, kind } = outcome.error;
  if (name === "ImageError") throw new ImageError(message, kind as ImageError["kind"]);
  throw new EncoderError(message);
}
