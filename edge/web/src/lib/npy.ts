/** Reads a .npy file of float32, as numpy writes it. Source: numpy's NEP 1. */
import { BundleError } from "./errors.js";

export function readNpy(file: ArrayBuffer): { data: Float32Array; shape: number[] } {
  const view = new DataView(file);
  const major = view.getUint8(6);
  const headerBytes = major === 1 ? view.getUint16(8, true) : view.getUint32(8, true);
  const start = (major === 1 ? 10 : 12) + headerBytes;
  const header = new TextDecoder("latin1").decode(new Uint8Array(file, 0, start));
  const shape = /'shape': \(([\d, ]*)\)/.exec(header)?.[1]?.split(",").filter((part) => part.trim()).map(Number);
  if (!header.includes("'<f4'") || !header.includes("'fortran_order': False") || !shape) {
    throw new BundleError("expected a .npy file of little-endian float32 in C order");
  }
  return { data: new Float32Array(file.slice(start)), shape };
}
