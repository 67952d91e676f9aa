/** The device bundle, fetched from a server, held to the digests of its manifest, and kept in the Cache API. */
import { BundleError } from "./errors.js";

const FORMAT = "asymcir.device-bundle";
const VERSION = 1;
const CACHE = "asymcir-bundles";
const GOLDEN = "golden/";

export interface BundleManifest {
  format: string;
  version: number;
  files: Record<string, { sha256: string; size_bytes: number }>;
  properties: Record<string, unknown>;
}

export interface Preprocessing {
  size: number;
  resize: "shortest" | "squash";
}

export interface Progress {
  /** What is being fetched. */
  file: string;
  loadedBytes: number;
  totalBytes: number;
}

export interface LoadOptions {
  onProgress?: (progress: Progress) => void;
  /** Keep verified files for the next visit. Default: true. */
  cache?: boolean;
  /** Called where the browser does not keep them: its storage is full or refused. The bundle works all the same. */
  onCacheError?: (error: unknown) => void;
  signal?: AbortSignal;
}

export class DeviceBundle {
  private constructor(
    readonly url: string,
    readonly manifest: BundleManifest,
    /** Digest of the word space that the tokens live in. */
    readonly wordSpace: string,
    /** L, tokens per picture. */
    readonly sentenceLength: number,
    /** D, width of a token. */
    readonly wordWidth: number,
    readonly preprocessing: Preprocessing,
    readonly encoderFile: string,
    readonly precision: string,
    private readonly options: LoadOptions,
    readonly encoder: ArrayBuffer,
  ) {}

  /**
   * Fetches a bundle's manifest and default encoder, and compares the encoder with its digest.
   *
   * The manifest is asked for at each visit; the encoder is taken from the cache where its digest is the manifest's.
   * Without a connection the manifest of the last visit counts.
   *
   * @param url of the folder that holds `manifest.json`.
   * @throws BundleError: not reachable, no device bundle, or a file that differs from the manifest.
   */
  static async load(url: string | URL, options: LoadOptions = {}): Promise<DeviceBundle> {
    const base = new URL(String(url).replace(/\/?$/, "/"), globalThis.location?.href).href;
    const manifest = await fetchManifest(base, options);
    const properties = manifest.properties;
    const precision = text(properties, "default_encoder");
    const encoderFile = (properties.encoders as Record<string, string> | undefined)?.[precision];
    if (encoderFile === undefined || !(encoderFile in manifest.files)) {
      throw new BundleError(`the manifest of ${base} names no encoder of precision ${precision}; export it again`);
    }
    const preprocessing = properties.preprocessing as Preprocessing | undefined;
    if (!preprocessing || typeof preprocessing.size !== "number") {
      throw new BundleError(`the manifest of ${base} says nothing about preprocessing; export it again`);
    }
    const encoder = await fetchListed(base, manifest, encoderFile, options);
    return new DeviceBundle(
      base, manifest, text(properties, "word_space"), count(properties, "sentence_length"),
      count(properties, "word_width"), preprocessing, encoderFile, precision, options, encoder,
    );
  }

  /** Fetches another file of the bundle, and compares it with its digest. */
  async file(name: string): Promise<ArrayBuffer> {
    if (name === this.encoderFile) return this.encoder;
    return fetchListed(this.url, this.manifest, name, { ...this.options, onProgress: undefined, cache: this.options.cache !== false && !name.startsWith(GOLDEN) });
  }
}

async function fetchManifest(base: string, options: LoadOptions): Promise<BundleManifest> {
  const url = `${base}manifest.json`;
  let response: Response | undefined;
  try {
    response = await fetch(url, { cache: "no-cache", signal: options.signal });
  } catch (error) {
    response = await (await openCache())?.match(url);
    if (!response) throw new BundleError(`cannot fetch ${url}: ${reason(error)}`);
  }
  if (!response.ok) throw new BundleError(`cannot fetch ${url}: the server answered ${response.status}`);
  const body = await response.text();
  let manifest: BundleManifest;
  try {
    manifest = JSON.parse(body) as BundleManifest;
  } catch {
    throw new BundleError(`${url} is not JSON: expected the manifest of a device bundle`);
  }
  if (manifest?.format !== FORMAT || manifest.version !== VERSION || !manifest.files || !manifest.properties) {
    throw new BundleError(`expected a manifest of ${FORMAT}, version ${VERSION}, at ${url}, got ${String(manifest?.format)}, version ${String(manifest?.version)}`);
  }
  if (options.cache !== false) await keep(url, body, options);
  return manifest;
}

async function fetchListed(base: string, manifest: BundleManifest, name: string, options: LoadOptions): Promise<ArrayBuffer> {
  const listed = manifest.files[name];
  if (!listed) throw new BundleError(`the manifest of ${base} does not list ${name}`);
  const url = new URL(name, base).href;
  const kept = options.cache === false ? undefined : await (await openCache())?.match(url);
  if (kept) {
    const data = await kept.arrayBuffer();
    if ((await digest(data)) === listed.sha256) return data;
  }
  const data = await download(url, name, listed.size_bytes, options);
  const found = await digest(data);
  if (data.byteLength !== listed.size_bytes || found !== listed.sha256) {
    throw new BundleError(`${url} differs from its manifest: expected ${listed.size_bytes} bytes with SHA-256 ${listed.sha256.slice(0, 12)}, got ${data.byteLength} with ${found.slice(0, 12)}`);
  }
  if (options.cache !== false) await keep(url, data, options);
  return data;
}

async function download(url: string, file: string, totalBytes: number, options: LoadOptions): Promise<ArrayBuffer> {
  try {
    const response = await fetch(url, { signal: options.signal });
    if (!response.ok) throw new BundleError(`cannot fetch ${url}: the server answered ${response.status}`);
    const parts: Uint8Array<ArrayBuffer>[] = [];
    let loadedBytes = 0;
    const reader = response.body!.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      loadedBytes += part.value.length;
      options.onProgress?.({ file, loadedBytes, totalBytes });
    }
    return await new Blob(parts).arrayBuffer();
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError(`cannot fetch ${url}: ${reason(error)}`);
  }
}

async function keep(url: string, body: ArrayBuffer | string, options: LoadOptions): Promise<void> {
  try {
    await (await openCache())?.put(url, new Response(body));
  } catch (error) {
    options.onCacheError?.(error);
  }
}

/** Returns undefined where the browser has no cache for this page: it is not secure, or storage is switched off. */
async function openCache(): Promise<Cache | undefined> {
  try {
    return await globalThis.caches?.open(CACHE);
  } catch {
    return undefined;
  }
}

export async function digest(data: ArrayBuffer): Promise<string> {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("this page cannot check digests: browsers offer WebCrypto over HTTPS and on localhost only");
  }
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function text(properties: Record<string, unknown>, key: string): string {
  const value = properties[key];
  if (typeof value !== "string" || !value) throw new BundleError(`the manifest is wrong: expected ${key} to be a text, got ${String(value)}`);
  return value;
}

function count(properties: Record<string, unknown>, key: string): number {
  const value = properties[key];
  if (!Number.isInteger(value) || (value as number) < 1) {
    throw new BundleError(`the manifest is wrong: expected ${key} to be a whole number above 0, got ${String(value)}`);
  }
  return value as number;
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
