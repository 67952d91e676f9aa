/**
 * What can go wrong, as a tree:
 *
 * AsymcirError
 * - BundleError      the bundle cannot be fetched, or differs from its manifest
 * - ImageError       not a picture that can be used
 * - EncoderError     the runtime or the graph failed
 * - TokensError      sentence tokens that cannot be packed
 * - ServerError      the server answered with an error, or did not answer; `kind` tells which
 */
export class AsymcirError extends Error {
  override name = "AsymcirError";
}
export class BundleError extends AsymcirError {
  override name = "BundleError";
}
export class ImageError extends AsymcirError {
  override name = "ImageError";
  /** @param kind what a page may say in its own words. */
  constructor(message: string, readonly kind: "empty" | "unreadable" | "heic" | "too-large" | "too-long" = "unreadable") {
    super(message);
  }
}
export class EncoderError extends AsymcirError {
  override name = "EncoderError";
}
export class TokensError extends AsymcirError {
  override name = "TokensError";
}

/** refused: the request is wrong. space: the two sides were not made for each other. key: none or a wrong one. */
export type ServerErrorKind = "refused" | "space" | "not-found" | "key" | "busy" | "unreachable" | "timeout" | "internal";

export class ServerError extends AsymcirError {
  override name = "ServerError";
  constructor(message: string, readonly kind: ServerErrorKind) {
    super(message);
  }
}
