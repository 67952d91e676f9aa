/** Where the page finds the runtime: beside itself, the binary packed by gzip (scripts/finish-page.mjs puts it there). */
export const runtime = {
  script: new URL("runtime/ort-wasm-simd-threaded.mjs", document.baseURI).href,
  binary: new URL("runtime/ort-wasm-simd-threaded.wasm.gz", document.baseURI).href,
};

/** Of the server: where the page came from. */
export const serverUrl = new URL(".", document.baseURI).href.replace(/\/$/, "");
export const bundleUrl = new URL("device/", document.baseURI).href;

export function thumbnailUrl(gallery: string, id: string): string {
  return `${serverUrl}/thumbnails/${encodeURIComponent(gallery)}/${id.split("/").map(encodeURIComponent).join("/")}`;
}
