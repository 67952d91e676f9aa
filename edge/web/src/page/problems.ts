/** Errors to sentences that say what to do. */
import { BundleError, EncoderError, ImageError, ServerError } from "../lib/index.js";
import { strings } from "./strings.js";

export interface Problem {
  sentence: string;
  /** What the page offers beside the sentence. */
  offer?: "retry" | "key";
}

export class CameraError extends Error {
  constructor(readonly sentence: string) {
    super(sentence);
  }
}

export function toProblem(error: unknown): Problem {
  const { problems } = strings;
  if (error instanceof CameraError) return { sentence: error.sentence };
  if (error instanceof ImageError) return { sentence: problems[error.kind] };
  if (error instanceof BundleError) return { sentence: globalThis.isSecureContext ? problems.bundle(trim(error)) : problems.insecure, offer: "retry" };
  if (error instanceof EncoderError) return { sentence: problems.encoder(trim(error)), offer: "retry" };
  if (error instanceof ServerError) {
    if (!navigator.onLine && error.kind === "unreachable") return { sentence: problems.offline, offer: "retry" };
    if (error.kind === "key") return { sentence: problems.keyMissing, offer: "key" };
    const sentence = problems[error.kind];
    return { sentence: typeof sentence === "string" ? sentence : sentence(trim(error)), offer: "retry" };
  }
  return { sentence: problems.unknown(error instanceof Error ? trim(error) : String(error)) };
}

function trim(error: Error): string {
  return error.message.split("\n")[0]!.slice(0, 240).replace(/[.\s]+$/, "");
}
