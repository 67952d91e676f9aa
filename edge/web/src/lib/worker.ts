/** What runs beside the page: decoding and encoding. `encoder.ts` speaks to it. */
import { expose, transfer } from "comlink";
import { ImageError } from "./errors.js";
import { decodePicture, dropAlpha, readPixels, type Pixels } from "./picture.js";
import { EncoderSession, type Encoded, type SessionOptions } from "./session.js";

/** Errors lose their class on the way; so they travel as values. */
export type Outcome<T> = { value: T } | { error: { name: string; message: string; kind?: string } };

export interface Picture extends Encoded {
  decodeMs: number;
  width: number;
  height: number;
  originalWidth: number;
  originalHeight: number;
}

export type Source = Blob | ImageBitmap | ImageData;

let session: EncoderSession | undefined;

const api = {
  open: (graph: ArrayBuffer, options: SessionOptions) =>
    attempt(async () => {
      session = await EncoderSession.open(graph, options);
      return { threads: session.threads };
    }),
  encode: (source: Source, withMaps: boolean) =>
    attempt(async () => {
      const started = performance.now();
      const pixels = await decode(source);
      const decodeMs = performance.now() - started;
      const encoded = await session!.run(pixels, withMaps);
      const { width, height, originalWidth, originalHeight } = pixels;
      const picture: Picture = { ...encoded, decodeMs, width, height, originalWidth, originalHeight };
      return transfer(picture, [encoded.tokens.buffer]);
    }),
};

export type WorkerApi = typeof api;

async function decode(source: Source): Promise<Pixels> {
  if (source instanceof Blob) return decodePicture(source);
  if (source instanceof ImageBitmap) return readPixels(source);
  const { width, height, data } = source;
  return { data: dropAlpha(data), width, height, originalWidth: width, originalHeight: height };
}

async function attempt<T>(action: () => Promise<T>): Promise<Outcome<T>> {
  try {
    return { value: await action() };
  } catch (error) {
    const { name, message } = error instanceof Error ? error : { name: "Error", message: String(error) };
    return { error: { name, message, kind: error instanceof ImageError ? error.kind : undefined } };
  }
}

expose(api);
