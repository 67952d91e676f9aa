import { defineConfig } from "vite";

// onnxruntime-web's own bundle holds its WebAssembly's address; the page passes one instead (src/page/runtime.ts).
export default defineConfig({
  base: "./",
  build: { outDir: "dist/page", emptyOutDir: true, target: "es2022", modulePreload: false },
  worker: { format: "es" },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import", "default"] },
});
