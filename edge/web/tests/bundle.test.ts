import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { fileURLToPath } from "node:url";
import { DeviceBundle } from "../src/lib/bundle.js";
import { sessionOptions } from "../src/lib/encoder.js";
import { EncoderSession } from "../src/lib/session.js";
import { leastCosine } from "../src/lib/selftest.js";
import { readNpy } from "../src/lib/npy.js";
import { serveFolder } from "./static-server.js";

const DEVICE = fileURLToPath(new URL("../../../demo/assets/device/", import.meta.url));
let server: Awaited<ReturnType<typeof serveFolder>>;
beforeAll(async () => void (server = await serveFolder(DEVICE)));
afterAll(() => server.close());

it("loads the demo's bundle and tells how far it is", async () => {
  const shares: number[] = [];
  const bundle = await DeviceBundle.load(server.url, { onProgress: ({ loadedBytes, totalBytes }) => shares.push(loadedBytes / totalBytes) });
  expect(bundle.wordSpace).toMatch(/^[0-9a-f]{64}$/);
  expect(shares.at(-1)).toBe(1);
  const { data, shape } = readNpy(await bundle.file("golden/tokens.npy"));
  expect(shape).toEqual([bundle.manifest.properties.golden && (bundle.manifest.properties.golden as { pictures: number }).pictures, bundle.sentenceLength, bundle.wordWidth]);
  expect(data.every(Number.isFinite)).toBe(true);
  await expect(bundle.file("nothing.bin")).rejects.toThrow(/does not list/);
});

it("refuses a file that differs from the manifest, a server without a bundle, and none", async () => {
  const broken = await serveFolder(DEVICE, (name, data) => {
    if (name === "encoder.onnx") data[data.length >> 1]! ^= 1;
    return data;
  });
  await expect(DeviceBundle.load(broken.url)).rejects.toThrow(/differs from its manifest/);
  await broken.close();
  await expect(DeviceBundle.load(`${server.url}golden`)).rejects.toThrow(/404/);
  await expect(DeviceBundle.load(broken.url)).rejects.toThrow(/cannot fetch/);
});

describe("the encoder's graph in WebAssembly", () => {
  it("gives one finite sentence, for any size", async () => {
    const bundle = await DeviceBundle.load(server.url);
    const session = await EncoderSession.open(bundle.encoder, sessionOptions(bundle, { threads: 1 }));
    const picture = (width: number, height: number) => ({ width, height, data: new Uint8Array(3 * width * height).map((_, index) => (index * 7919) % 256) });
    const first = await session.run(picture(96, 64));
    expect(first.tokens.length).toBe(bundle.sentenceLength * bundle.wordWidth);
    const again = await session.run(picture(96, 64));
    expect(leastCosine(first.tokens, again.tokens, bundle.wordWidth)).toBeGreaterThan(0.999999);
    const other = await session.run(picture(1, 1));
    expect(leastCosine(first.tokens, other.tokens, bundle.wordWidth)).toBeLessThan(0.9999);
    if (first.maps) {
      const size = first.maps.height * first.maps.width;
      expect(first.maps.data.length).toBe(bundle.sentenceLength * size);
      for (let start = 0; start < first.maps.data.length; start += size) {
        expect(first.maps.data.subarray(start, start + size).reduce((sum, weight) => sum + weight, 0)).toBeCloseTo(1, 4);
      }
    }
    await session.close();
  });
  it("says so where the graph is none", async () => {
    await expect(EncoderSession.open(new ArrayBuffer(10), { sentenceLength: 6, wordWidth: 384, floatCompute: false, threads: 1 })).rejects.toThrow(/does not open/);
  });
});
