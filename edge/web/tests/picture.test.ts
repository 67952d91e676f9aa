import { expect, it } from "vitest";
import { ImageError } from "../src/lib/errors.js";
import { checkSize, decodePicture, dropAlpha, readSize } from "../src/lib/picture.js";

const bytes = (...parts: (string | number[])[]) =>
  new Uint8Array([...parts.flatMap((part) => (typeof part === "string" ? [...part].map((letter) => letter.charCodeAt(0)) : part)), ...new Array(40).fill(0)]);

it("reads the size that a header states", () => {
  expect(readSize(bytes([0x89], "PNG\r\n", [0x1a, 10, 0, 0, 0, 13], "IHDR", [0, 0, 0x50, 0, 0, 0, 0x28, 0]))).toEqual({ width: 20480, height: 10240 });
  expect(readSize(bytes("GIF89a", [0x2c, 1, 0xc8, 0]))).toEqual({ width: 300, height: 200 });
  expect(readSize(bytes([0xff, 0xd8, 0xff, 0xe0, 0, 4, 1, 1, 0xff, 0xc2, 0, 17, 8, 1, 0, 2, 0]))).toEqual({ width: 512, height: 256 });
  expect(readSize(bytes("RIFF", [0, 0, 0, 0], "WEBPVP8X", [10, 0, 0, 0, 0, 0, 0, 0, 0x3f, 0x9c, 0, 0x0f, 0x27, 0]))).toEqual({ width: 40000, height: 10000 });
  expect(readSize(bytes("no picture"))).toBeUndefined();
});

it("refuses what no encoder should see", async () => {
  expect(() => checkSize(20000, 10000)).toThrow(/megapixels/);
  expect(() => checkSize(5001, 100)).toThrow(/50 times/);
  expect(() => checkSize(5000, 100)).not.toThrow();
  expect(() => checkSize(0, 3)).toThrow(ImageError);
  await expect(decodePicture(new Blob([]))).rejects.toMatchObject({ kind: "empty" });
  // A bomb is refused by its header: no decoder runs here in Node.
  const bomb = bytes([0x89], "PNG\r\n", [0x1a, 10, 0, 0, 0, 13], "IHDR", [0, 1, 0, 0, 0, 1, 0, 0]);
  await expect(decodePicture(new Blob([bomb]))).rejects.toMatchObject({ kind: "too-large" });
});

it("drops alpha", () => {
  expect([...dropAlpha(new Uint8Array([1, 2, 3, 255, 4, 5, 6, 255]))]).toEqual([1, 2, 3, 4, 5, 6]);
});
