/**
 * The self-test of a device bundle in this browser, by the rules of `asymcir selftest`: golden pictures, decoded and
 * encoded here, against the golden tokens that PyTorch gave.
 *
 * Notation: n golden pictures, L sentence tokens, D word-embedding width.
 */
import type { DeviceBundle } from "./bundle.js";
import { BundleError } from "./errors.js";
import { readNpy } from "./npy.js";

/** Where the bundle says nothing, as in asymcir_edge/device/golden.py. */
export const FLOAT_COSINE_MIN = 0.999;
export const INT8_COSINE_MIN = 0.98;

export interface PictureVerdict {
  picture: string;
  cosineMin?: number;
  problem: string;
}

export interface SelfTestReport {
  passed: boolean;
  precision: string;
  thresholds: { cosineMin: number; errorToSpreadMax?: number };
  cosineMin?: number;
  errorToSpread?: number;
  pictures: PictureVerdict[];
  problem: string;
}

interface Golden {
  tokens: string;
  pictures: { file: string; width: number; height: number }[];
  thresholds: Record<string, { cosine_min: number; error_to_spread_max?: number }>;
}

/** Encodes a picture file: of `QueryEncoder.encode`, or another way that is to be tested. */
export type EncodeFile = (file: Blob, name: string) => Promise<{ tokens: Float32Array; originalWidth: number; originalHeight: number }>;

/** @throws BundleError: the bundle has no golden pictures, or broken ones. */
export async function selfTest(bundle: DeviceBundle, encode: EncodeFile): Promise<SelfTestReport> {
  if (!bundle.manifest.properties.golden) {
    throw new BundleError(`${bundle.url} has no golden pictures and tokens to test against: export the bundle again`);
  }
  const golden = JSON.parse(new TextDecoder().decode(await bundle.file("golden/golden.json"))) as Golden;
  const { data, shape } = readNpy(await bundle.file(`golden/${golden.tokens}`));
  const size = bundle.sentenceLength * bundle.wordWidth;
  if (shape.join() !== [golden.pictures.length, bundle.sentenceLength, bundle.wordWidth].join()) {
    throw new BundleError(`expected golden tokens of ${golden.pictures.length} pictures, got the shape ${shape.join(", ")}`);
  }
  const given = golden.thresholds[bundle.precision];
  const computesInFloat = ["fp32", "fp16"].includes(bundle.precision.split("-")[0]!);
  const cosineMin = given?.cosine_min ?? (computesInFloat ? FLOAT_COSINE_MIN : INT8_COSINE_MIN);
  const errorToSpreadMax = given?.error_to_spread_max;
  const found = new Float32Array(data.length);
  const pictures: PictureVerdict[] = [];
  for (const [index, picture] of golden.pictures.entries()) {
    const verdict: PictureVerdict = { picture: picture.file, problem: "" };
    pictures.push(verdict);
    try {
      const file = new Blob([await bundle.file(`golden/pictures/${picture.file}`)]);
      const { tokens, originalWidth, originalHeight } = await encode(file, picture.file);
      if (originalWidth !== picture.width || originalHeight !== picture.height) {
        throw new Error(`decoded to ${originalWidth}x${originalHeight}, expected ${picture.width}x${picture.height}`);
      }
      found.set(tokens, index * size);
      verdict.cosineMin = leastCosine(data.subarray(index * size, (index + 1) * size), tokens, bundle.wordWidth);
      if (!(verdict.cosineMin >= cosineMin)) verdict.problem = `cosine ${verdict.cosineMin.toFixed(5)}, expected at least ${cosineMin}`;
    } catch (error) {
      verdict.problem = error instanceof Error ? error.message : String(error);
    }
  }
  const whole = pictures.every((picture) => picture.cosineMin !== undefined);
  const errorToSpread = whole ? compareToSpread(data, found, golden.pictures.length) : undefined;
  let problem = "";
  if (errorToSpreadMax !== undefined && errorToSpread !== undefined && !(errorToSpread <= errorToSpreadMax)) {
    problem = `error to spread ${errorToSpread.toFixed(3)}, expected at most ${errorToSpreadMax}: another encoder, or one that computes otherwise here`;
  }
  return {
    passed: !problem && pictures.every((picture) => !picture.problem),
    precision: bundle.precision,
    thresholds: { cosineMin, errorToSpreadMax },
    cosineMin: whole ? Math.min(...pictures.map((picture) => picture.cosineMin!)) : undefined,
    errorToSpread,
    pictures,
    problem,
  };
}

/** Least cosine of a token [D] of one picture [L, D] with its golden one. */
export function leastCosine(expected: Float32Array, found: Float32Array, width: number): number {
  let least = Infinity;
  for (let start = 0; start < expected.length; start += width) {
    let [dot, a, b] = [0, 0, 0];
    for (let index = start; index < start + width; index++) {
      dot += expected[index]! * found[index]!;
      a += expected[index]! ** 2;
      b += found[index]! ** 2;
    }
    least = Math.min(least, dot / Math.max(Math.sqrt(a * b), 1e-12));
  }
  return least;
}

function compareToSpread(expected: Float32Array, found: Float32Array, n: number): number {
  const size = expected.length / n;
  const mean = new Float64Array(size);
  expected.forEach((value, index) => (mean[index % size]! += value / n));
  let [spread, error] = [0, 0];
  expected.forEach((value, index) => {
    spread += (value - mean[index % size]!) ** 2;
    error += (value - found[index]!) ** 2;
  });
  return Math.sqrt(error) / Math.max(Math.sqrt(spread), 1e-12);
}
