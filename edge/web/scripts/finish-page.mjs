// Completes the built page: the runtime beside it, the service worker's list of files, and the budget of script.
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { fileURLToPath } from "node:url";

const BUDGET_BYTES = 250_000;
const page = fileURLToPath(new URL("../dist/page/", import.meta.url));
const runtime = fileURLToPath(new URL("../node_modules/onnxruntime-web/dist/", import.meta.url));
const name = "ort-wasm-simd-threaded";

mkdirSync(`${page}runtime`, { recursive: true });
copyFileSync(`${runtime}${name}.mjs`, `${page}runtime/${name}.mjs`);
const packed = gzipSync(readFileSync(`${runtime}${name}.wasm`), { level: 9 });
packed[9] = 255; // the operating system, which gzip notes and nothing reads
writeFileSync(`${page}runtime/${name}.wasm.gz`, packed);

// Notices of what the binary contains, from the Python package of the same version, which has them; npm's has not.
copyFileSync(fileURLToPath(new URL("onnxruntime-notices.txt", import.meta.url)), `${page}runtime/THIRD-PARTY-NOTICES.txt`);

const files = readdirSync(page, { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name !== "sw.js" && !entry.name.endsWith(".txt"))
  .map((entry) => `${entry.parentPath}/${entry.name}`.replaceAll("//", "/").slice(page.length))
  .sort();
const digest = createHash("sha256"); // without the packed binary, whose bytes depend on the release of zlib
for (const file of files.filter((each) => !each.endsWith(".gz"))) digest.update(file).update(readFileSync(page + file));
const worker = readFileSync(new URL("../src/page/sw.js", import.meta.url), "utf8");
const listed = files.map((file) => (file === "index.html" ? "./" : `./${file}`));
writeFileSync(
  `${page}sw.js`,
  `const VERSION = ${JSON.stringify(digest.digest("hex").slice(0, 16))};\nconst FILES = ${JSON.stringify(listed)};\n${worker}`,
);

const script = files.filter((file) => file.endsWith(".js")).reduce((sum, file) => sum + statSync(page + file).size, 0);
console.log(`script besides the runtime: ${script} bytes of ${BUDGET_BYTES}`);
if (script > BUDGET_BYTES) {
  console.error("the page's script is above its budget");
  process.exit(1);
}
