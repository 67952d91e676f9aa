/** @asymcir/web: the device side of asymcir in a browser. A picture becomes tokens here, and only those are sent. */
export { DeviceBundle, type BundleManifest, type LoadOptions, type Preprocessing, type Progress } from "./bundle.js";
export { RetrievalClient, type Answer, type ClientOptions, type Query } from "./client.js";
export { QueryEncoder, type EncoderOptions } from "./encoder.js";
export {
  AsymcirError, BundleError, EncoderError, ImageError, ServerError, TokensError, type ServerErrorKind,
} from "./errors.js";
export { MAX_ASPECT_RATIO, MAX_FULL_PIXELS, MAX_PIXELS, type Pixels } from "./picture.js";
export { selfTest, type EncodeFile, type PictureVerdict, type SelfTestReport } from "./selftest.js";
export type { Encoded, RuntimeFiles } from "./session.js";
export { packTokens, type TokenEncoding } from "./tokens.js";
export type { Picture, Source } from "./worker.js";
