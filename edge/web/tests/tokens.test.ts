import { describe, expect, it } from "vitest";
import { TokensError } from "../src/lib/errors.js";
import { packTokens } from "../src/lib/tokens.js";
import cases from "./fixtures/tokens.json";

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

describe("packed tokens are Python's, bit by bit", () => {
  for (const { name, length, bits, fp16, int8, scales } of cases) {
    const tokens = new Float32Array(new Uint32Array(bits).buffer);
    it(`${name}, fp16`, () => {
      expect(hex(packTokens(tokens, length, "fp16").encoding.value as Uint8Array)).toBe(fp16);
    });
    it(`${name}, int8`, () => {
      const { encoding } = packTokens(tokens, length, "int8");
      if (encoding.case !== "int8") throw new Error("expected int8");
      expect(hex(encoding.value.values)).toBe(int8);
      expect(encoding.value.scales).toEqual(scales);
    });
  }
});

it("refuses tokens that are not finite, too large or of no shape", () => {
  expect(() => packTokens(new Float32Array([1, NaN]), 1)).toThrow(TokensError);
  expect(() => packTokens(new Float32Array([1, 70000]), 1)).toThrow(/fp16/);
  expect(() => packTokens(new Float32Array([1, 70000]), 1, "int8")).not.toThrow();
  expect(() => packTokens(new Float32Array(5), 2)).toThrow(/shape/);
  expect(() => packTokens(new Float32Array(0), 1)).toThrow(TokensError);
});
