/** The encoder's graph in onnxruntime-web: WebAssembly with SIMD, and threads where the page is isolated. */
import * as ort from "onnxruntime-web/wasm";
import { EncoderError } from "./errors.js";
import type { Pixels } from "./picture.js";

const INPUT = "pixels";
const OUTPUT = "sentence_tokens";
const MAPS = "attention_maps";
const MAX_THREADS = 4;

export interface RuntimeFiles {
  /** Address of `ort-wasm-simd-threaded.mjs`. */
  script?: string;
  /** Address of `ort-wasm-simd-threaded.wasm`, as it is or compressed by gzip. */
  binary?: string;
}

export interface SessionOptions {
  runtime?: RuntimeFiles;
  /** Default: half as many as cores, at most 4, where the page is cross-origin isolated; otherwise 1. */
  threads?: number;
  sentenceLength: number;
  wordWidth: number;
  /** The graph keeps weights as int8 and computes in float. */
  floatCompute: boolean;
}

export interface Encoded {
  /** [L, D]. */
  tokens: Float32Array;
  /** What each token looks at, [L, h, w]; undefined for bundles that do not tell. Each map sums up to 1. */
  maps?: { data: Float32Array; height: number; width: number };
  encodeMs: number;
}

export class EncoderSession {
  private constructor(
    private readonly session: ort.InferenceSession,
    private readonly options: SessionOptions,
    readonly threads: number,
  ) {}

  /** @throws EncoderError: the runtime or the graph does not open here. */
  static async open(graph: ArrayBuffer, options: SessionOptions): Promise<EncoderSession> {
    const threads = options.threads ?? defaultThreads();
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const { script, binary } = options.runtime ?? {};
    if (script) ort.env.wasm.wasmPaths = { mjs: script };
    try {
      if (binary) ort.env.wasm.wasmBinary = await fetchRuntime(binary);
      const session = await ort.InferenceSession.create(new Uint8Array(graph), {
        executionProviders: ["wasm"],
        ...(options.floatCompute ? { extra: { session: { disable_quant_qdq: "1" } } } : {}),
      });
      if (!session.inputNames.includes(INPUT) || !session.outputNames.includes(OUTPUT)) {
        throw new Error(`expected the input ${INPUT} and the output ${OUTPUT}, got ${session.inputNames} and ${session.outputNames}`);
      }
      return new EncoderSession(session, options, threads);
    } catch (error) {
      throw new EncoderError(`the encoder does not open in this browser: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  async run(pixels: Pick<Pixels, "data" | "width" | "height">, withMaps = true): Promise<Encoded> {
    const { sentenceLength, wordWidth } = this.options;
    const started = performance.now();
    const input = new ort.Tensor("uint8", pixels.data, [pixels.height, pixels.width, 3]);
    const names = withMaps && this.session.outputNames.includes(MAPS) ? [OUTPUT, MAPS] : [OUTPUT];
    let outputs: ort.InferenceSession.ReturnType;
    try {
      outputs = await this.session.run({ [INPUT]: input }, names);
    } catch (error) {
      throw new EncoderError(`the encoder failed on a picture of ${pixels.width}x${pixels.height}: ${error instanceof Error ? error.message : String(error)}`);
    }
    const tokens = outputs[OUTPUT]!.data as Float32Array;
    if (tokens.length !== sentenceLength * wordWidth || !tokens.every(Number.isFinite)) {
      throw new EncoderError(`expected finite sentence tokens [${sentenceLength}, ${wordWidth}], got ${outputs[OUTPUT]!.dims.join(", ")}`);
    }
    const found = outputs[MAPS];
    return {
      tokens: tokens.slice(),
      maps: found && { data: (found.data as Float32Array).slice(), height: found.dims[1]!, width: found.dims[2]! },
      encodeMs: performance.now() - started,
    };
  }

  async close(): Promise<void> {
    await this.session.release();
  }
}

function defaultThreads(): number {
  const cores = globalThis.navigator?.hardwareConcurrency ?? 1;
  return globalThis.crossOriginIsolated ? Math.max(1, Math.min(MAX_THREADS, Math.floor(cores / 2))) : 1;
}

/** Fetches the runtime, and unpacks it where it is packed: a server that knows nothing of it can serve it. */
async function fetchRuntime(url: string): Promise<ArrayBuffer> {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`cannot fetch ${url}: the server answered ${response.status}`);
  const data = await response.arrayBuffer();
  const start = new Uint8Array(data, 0, 2);
  if (start[0] !== 0x1f || start[1] !== 0x8b) return data; // the server unpacked it, or it never was packed
  return new Response(new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}
