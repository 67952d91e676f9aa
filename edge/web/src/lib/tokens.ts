/**
 * Sentence tokens on the wire: fp16, or int8 with one scale per token. The same bytes as asymcir_protos/tokens.py.
 *
 * Notation: L tokens of width D, row by row in one Float32Array.
 */
import { create } from "@bufbuild/protobuf";
import { SentenceTokensSchema, type SentenceTokens } from "../gen/asymcir_protos/v1/retrieval_pb.js";
import { TokensError } from "./errors.js";

export type TokenEncoding = "fp16" | "int8";

const INT8_MAX = 127;
const FP16_MAX = 65504;
const word = new DataView(new ArrayBuffer(4));

/** Packs tokens [length, width]. Throws TokensError where they are empty, not finite or do not fit. */
export function packTokens(tokens: Float32Array, length: number, encoding: TokenEncoding = "fp16"): SentenceTokens {
  const width = tokens.length / length;
  if (!Number.isInteger(width) || length < 1 || width < 1) {
    throw new TokensError(`expected sentence tokens of shape [L, D], got ${tokens.length} values for ${length} tokens`);
  }
  if (!tokens.every(Number.isFinite)) {
    throw new TokensError("expected finite sentence tokens, got NaN or infinity: the encoder or its input is broken");
  }
  const message = create(SentenceTokensSchema, { length, width });
  message.encoding =
    encoding === "fp16"
      ? { case: "fp16", value: toHalves(tokens) }
      : { case: "int8", value: { $typeName: "asymcir.v1.Int8Tokens", ...toInt8(tokens, length, width) } };
  return message;
}

function toHalves(tokens: Float32Array): Uint8Array<ArrayBuffer> {
  const bytes = new DataView(new ArrayBuffer(2 * tokens.length));
  tokens.forEach((value, index) => {
    if (Math.abs(value) > FP16_MAX) {
      throw new TokensError(`a token value exceeds ${FP16_MAX}, the largest that fp16 holds: send them as int8`);
    }
    bytes.setUint16(2 * index, toHalf(value), true);
  });
  return new Uint8Array(bytes.buffer);
}

/** Rounds a number of at most FP16_MAX to the nearest half float, ties to even, as IEEE 754 says; returns its bits. */
export function toHalf(value: number): number {
  word.setFloat32(0, value);
  const bits = word.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const exponent = ((bits >>> 23) & 0xff) - 112; // 127 - 15: the difference of the biases
  const fraction = bits & 0x7fffff;
  if (exponent <= 0) {
    if (exponent < -10) return sign;
    return sign | shiftToEven(fraction | 0x800000, 14 - exponent); // subnormal
  }
  return sign | ((exponent << 10) + shiftToEven(fraction, 13)); // a carry moves on into the exponent, as it should
}

function shiftToEven(value: number, bits: number): number {
  const kept = value >>> bits;
  const rest = value & ((1 << bits) - 1);
  const half = 1 << (bits - 1);
  return kept + (rest > half || (rest === half && (kept & 1) === 1) ? 1 : 0);
}

function toInt8(tokens: Float32Array, length: number, width: number) {
  const values = new Int8Array(tokens.length);
  const scales: number[] = [];
  for (let row = 0; row < length; row++) {
    const token = tokens.subarray(row * width, (row + 1) * width);
    const scale = Math.fround(token.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / INT8_MAX);
    scales.push(scale);
    const divisor = scale > 0 ? scale : 1;
    token.forEach((value, column) => {
      const rounded = roundToEven(Math.fround(value / divisor));
      values[row * width + column] = Math.min(INT8_MAX, Math.max(-INT8_MAX, rounded));
    });
  }
  return { values: new Uint8Array(values.buffer), scales };
}

function roundToEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  if (rest !== 0.5) return Math.round(value);
  return floor % 2 === 0 ? floor : floor + 1;
}
