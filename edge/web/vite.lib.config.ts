import { defineConfig } from "vite";

export default defineConfig({
  publicDir: false,
  build: {
    outDir: "dist/lib",
    target: "es2022",
    minify: false,
    lib: { entry: { index: "src/lib/index.ts" }, formats: ["es"] },
    rolldownOptions: { external: [/^onnxruntime-web/, /^@connectrpc/, /^@bufbuild/, "comlink"] },
  },
  worker: { format: "es", rolldownOptions: { external: [] } },
  resolve: { conditions: ["onnxruntime-web-use-extern-wasm", "module", "browser", "import", "default"] },
});
