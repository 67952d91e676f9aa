import { defineConfig } from "vite";
// @ts-expect-error: a plain script
import { notePackages, writeLicences } from "./scripts/licences.mjs";

const packages = new Set<string>();

// onnxruntime-web's own bundle holds its WebAssembly's address; the page passes one instead (src/page/runtime.ts).
export default defineConfig({
  base: "./",
  build: { outDir: "dist/page", emptyOutDir: true, target: "es2022", modulePreload: false },
  worker: { format: "es", plugins: () => [notePackages(packages)] },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import", "default"] },
  plugins: [
    notePackages(packages),
    {
      name: "licences",
      generateBundle() {
        this.emitFile({ type: "asset", fileName: "THIRD-PARTY-LICENSES.txt", source: writeLicences(packages) });
      },
    },
  ],
});
