// Puts the built page where `asymcir serve --web` finds it; with --check says whether what lies there is the same.
import { cpSync, existsSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gunzipSync } from "node:zlib";

const built = fileURLToPath(new URL("../dist/page/", import.meta.url));
const shipped = fileURLToPath(new URL("../../../server/asymcir_server/serve/http/page/", import.meta.url));

const list = (folder) =>
  existsSync(folder)
    ? readdirSync(folder, { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile())
        .map((entry) => `${entry.parentPath}/${entry.name}`.replaceAll("//", "/").slice(folder.length))
        .sort()
    : [];
// Packed files are compared by what is in them: releases of zlib pack differently, and git keeps every version.
const read = (path) => (path.endsWith(".gz") ? gunzipSync(readFileSync(path)) : readFileSync(path));
const same = (file) => existsSync(shipped + file) && read(built + file).equals(read(shipped + file));

const differing = list(built).filter((file) => !same(file));
const surplus = list(shipped).filter((file) => !existsSync(built + file));
if (process.argv.includes("--check")) {
  if (differing.length + surplus.length) {
    console.error(`the shipped page differs from its sources in ${[...differing, ...surplus].join(", ")}: run \`make web\` and commit`);
    process.exit(1);
  }
} else {
  for (const file of surplus) rmSync(shipped + file);
  for (const file of differing) cpSync(built + file, shipped + file);
  console.log(`${differing.length} files written, ${surplus.length} removed`);
}
