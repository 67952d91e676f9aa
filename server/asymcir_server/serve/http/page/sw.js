const VERSION = "0d5d1c9613f19437";
const FILES = ["./app.webmanifest","./assets/index-B0NME19g.js","./assets/index-lB_dzyVx.css","./assets/worker-B2UVAogo.js","./icon.svg","./","./runtime/ort-wasm-simd-threaded.mjs","./runtime/ort-wasm-simd-threaded.wasm.gz"];
// The service worker: keeps the page and its runtime, so that it opens offline. VERSION and FILES are put before this.
// It never touches searches, thumbnails or the bundle, which the page keeps by itself.
const CACHE = `asymcir-page-${VERSION}`;

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter((name) => name.startsWith("asymcir-page-") && name !== CACHE).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const own = FILES.some((file) => new URL(file, self.registration.scope).href === request.url);
  if (request.method !== "GET" || !own) return;
  // A page that was replaced on the server is taken at once where there is a connection.
  const kept = () => caches.open(CACHE).then((cache) => cache.match(request));
  event.respondWith(
    request.mode === "navigate"
      ? fetch(request).catch(kept)
      : kept().then((response) => response ?? fetch(request)),
  );
});
