/**
 * A picture file to the pixels a person would see, as asymcir_common/pictures.py decodes it: turned by EXIF,
 * transparency on white, the first frame of an animation, no colour profile applied.
 *
 * What differs from Pillow: formats are the browser's (HEIC in Safari only, no TIFF); JPEG decoders differ by a level or
 * two; pictures above MAX_FULL_PIXELS are halved before the encoder sees them, because a phone's page cannot hold 48
 * million pixels as float32.
 */
import { ImageError } from "./errors.js";

/** As in Python. */
export const MAX_PIXELS = 178_000_000;
/** The encoder's limit: one side may be this many times the other. */
export const MAX_ASPECT_RATIO = 50;
/** Larger ones are halved until they are below it; the encoder works on 128 pixels. */
export const MAX_FULL_PIXELS = 2_000_000;

const HEIC = new Set(["heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"]);

export interface Pixels {
  /** [height, width, 3], RGB. */
  data: Uint8Array;
  width: number;
  height: number;
  /** Of the file, upright. */
  originalWidth: number;
  originalHeight: number;
}

/** Decodes a file in a page or a worker. Throws ImageError. */
export async function decodePicture(file: Blob): Promise<Pixels> {
  if (file.size === 0) throw new ImageError("the picture is empty (0 bytes)", "empty");
  const head = new Uint8Array(await file.slice(0, 256 * 1024).arrayBuffer());
  const announced = readSize(head);
  if (announced && announced.width * announced.height > MAX_PIXELS) throw tooLarge(announced.width, announced.height);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image", premultiplyAlpha: "default", colorSpaceConversion: "none",
    });
  } catch {
    if (isHeic(head)) throw new ImageError("this browser does not read HEIC pictures", "heic");
    throw new ImageError("not a picture that this browser can read", "unreadable");
  }
  try {
    return readPixels(bitmap);
  } finally {
    bitmap.close();
  }
}

/** Reads a bitmap's pixels, on white. */
export function readPixels(bitmap: ImageBitmap): Pixels {
  const { width: originalWidth, height: originalHeight } = bitmap;
  checkSize(originalWidth, originalHeight);
  let [width, height] = [originalWidth, originalHeight];
  let source: ImageBitmap | OffscreenCanvas = bitmap;
  let canvas = paint(source, width * height > MAX_FULL_PIXELS ? Math.ceil(width / 2) : width, width * height > MAX_FULL_PIXELS ? Math.ceil(height / 2) : height);
  for ([width, height] = [canvas.width, canvas.height]; width * height > MAX_FULL_PIXELS; ) {
    source = canvas;
    [width, height] = [Math.ceil(width / 2), Math.ceil(height / 2)];
    canvas = paint(source, width, height);
  }
  const context = canvas.getContext("2d")!;
  const rgba = context.getImageData(0, 0, width, height).data;
  return { data: dropAlpha(rgba), width, height, originalWidth, originalHeight };
}

function paint(source: ImageBitmap | OffscreenCanvas, width: number, height: number): OffscreenCanvas {
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { alpha: false, willReadFrequently: true });
  if (!context) throw new ImageError("this browser has no canvas of that size: scale the picture down first", "too-large");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}

/** [n, 4] to [n, 3]. */
export function dropAlpha(rgba: Uint8ClampedArray | Uint8Array): Uint8Array {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from]!;
    rgb[to + 1] = rgba[from + 1]!;
    rgb[to + 2] = rgba[from + 2]!;
  }
  return rgb;
}

export function checkSize(width: number, height: number): void {
  if (width < 1 || height < 1) throw new ImageError("the picture has no pixels", "empty");
  if (width * height > MAX_PIXELS) throw tooLarge(width, height);
  if (Math.max(width, height) > MAX_ASPECT_RATIO * Math.min(width, height)) {
    throw new ImageError(`the picture is ${width}x${height}: one side is above ${MAX_ASPECT_RATIO} times the other`, "too-long");
  }
}

function tooLarge(width: number, height: number): ImageError {
  return new ImageError(`the picture is ${width}x${height}, above the limit of ${MAX_PIXELS / 1e6} megapixels: scale it down first`, "too-large");
}

function isHeic(head: Uint8Array): boolean {
  const letters = String.fromCharCode(...head.subarray(4, 12));
  return letters.startsWith("ftyp") && HEIC.has(letters.slice(4));
}

/** Reads the size that a file's header states, so that a picture bomb is refused before it is decoded. */
export function readSize(head: Uint8Array): { width: number; height: number } | undefined {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const starts = (start: number, letters: string) =>
    start + letters.length <= head.length && [...letters].every((letter, index) => head[start + index] === letter.charCodeAt(0));
  if (head.length < 30) return undefined;
  if (starts(1, "PNG\r\n")) return { width: view.getUint32(16), height: view.getUint32(20) };
  if (starts(0, "GIF8")) return { width: view.getUint16(6, true), height: view.getUint16(8, true) };
  if (starts(0, "BM")) return { width: Math.abs(view.getInt32(18, true)), height: Math.abs(view.getInt32(22, true)) };
  if (starts(0, "RIFF") && starts(8, "WEBP")) {
    if (starts(12, "VP8X")) {
      const three = (at: number) => view.getUint16(at, true) + (head[at + 2]! << 16) + 1;
      return { width: three(24), height: three(27) };
    }
    return undefined; // the others hold at most 16,383 pixels a side, and Chromium reads them by itself
  }
  if (head[0] === 0xff && head[1] === 0xd8) {
    let at = 2;
    while (at + 9 < head.length && head[at] === 0xff) {
      const marker = head[at + 1]!;
      if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
        return { width: view.getUint16(at + 7), height: view.getUint16(at + 5) };
      }
      at += 2 + view.getUint16(at + 2);
    }
  }
  return undefined;
}
