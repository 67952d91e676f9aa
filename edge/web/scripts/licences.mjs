// The licences of what the page bundles, as one text beside it. A package that is bundled and not listed here stops the build.
import { readFileSync } from "node:fs";

const modules = new URL("../node_modules/", import.meta.url);
const read = (path) => readFileSync(new URL(path, modules), "utf8").replaceAll("\r\n", "\n").trim();
const apache = () => readFileSync(new URL("../../../LICENSE", import.meta.url), "utf8").trim();
const mit = (holder) => read("preact/LICENSE").replace(/^The MIT License \(MIT\)\n\nCopyright.*$/m, `MIT License\n\n${holder}`);

/** Package -> its licence as its package.json names it, whose it is, and the text where the package carries one. */
const PACKAGES = {
  "@bufbuild/protobuf": {
    licence: "(Apache-2.0 AND BSD-3-Clause)",
    holder: "Copyright 2021-2026 Buf Technologies, Inc.; src/wire/varint.ts: Copyright 2008 Google Inc.",
    states: "@bufbuild/protobuf/dist/esm/create.js",
    more: () => comment("@bufbuild/protobuf/dist/esm/wire/varint.js"),
  },
  "@connectrpc/connect": {
    licence: "Apache-2.0", holder: "Copyright 2021-2026 The Connect Authors", states: "@connectrpc/connect/dist/esm/code.js",
  },
  "@connectrpc/connect-web": {
    licence: "Apache-2.0", holder: "Copyright 2021-2026 The Connect Authors", states: "@connectrpc/connect-web/dist/esm/connect-transport.js",
  },
  comlink: { licence: "Apache-2.0", holder: "Copyright 2017 Google Inc.", states: "comlink/LICENSE" },
  "onnxruntime-web": { licence: "MIT", holder: "Copyright (c) Microsoft Corporation", states: "onnxruntime-web/lib/index.ts" },
  "perfect-freehand": { licence: "MIT", holder: "Copyright (c) 2021 Stephen Ruiz Ltd", states: "perfect-freehand/LICENSE" },
  preact: { licence: "MIT", holder: "Copyright (c) 2015-present Jason Miller", states: "preact/LICENSE" },
};
const RUNTIME = `The files in runtime/ are onnxruntime-web's, the binary packed. It contains works of others, whose notices are in
runtime/THIRD-PARTY-NOTICES.txt: the ThirdPartyNotices.txt of ONNX Runtime.`;

/** Returns the comment that a file begins with, without its slashes. */
function comment(path) {
  const lines = read(path).split("\n");
  const end = lines.findIndex((line) => !line.startsWith("//"));
  return lines.slice(0, end).map((line) => line.replace(/^\/\/ ?/, "")).join("\n").trim();
}

/** Writes the text for these packages. Throws where one is unknown, or has another licence by now. */
export function writeLicences(bundled) {
  const names = [...new Set(bundled)].sort();
  for (const name of names) {
    const listed = PACKAGES[name];
    const stated = JSON.parse(read(`${name}/package.json`)).license;
    if (!listed) throw new Error(`the page bundles ${name} (${stated}): list it in scripts/licences.mjs and in NOTICE`);
    if (stated !== listed.licence) throw new Error(`${name} is under ${stated} now, scripts/licences.mjs says ${listed.licence}`);
    const first = listed.holder.split(";")[0];
    if (!read(listed.states).includes(first)) throw new Error(`${listed.states} does not say "${first}" any more`);
  }
  const of = (licence) => names.filter((name) => PACKAGES[name].licence.includes(licence));
  const rule = `\n\n${"-".repeat(100)}\n\n`;
  return [
    "This page contains the packages below, under their licences.",
    names.map((name) => `${name}: ${PACKAGES[name].licence.replace(/[()]/g, "")}. ${PACKAGES[name].holder}`).join("\n"),
    RUNTIME,
  ].join("\n\n") + [
    "",
    ...of("MIT").map((name) => `${name}\n\n${mit(PACKAGES[name].holder)}`),
    ...names.filter((name) => PACKAGES[name].more).map((name) => `${name}, in part\n\n${PACKAGES[name].more()}`),
    `${of("Apache-2.0").join(", ")}\n\n${apache()}`,
  ].join(rule) + "\n";
}

/** Vite's plugin: notes the packages of every chunk, those of the worker too. */
export function notePackages(into) {
  return {
    name: "note-packages",
    generateBundle(_, bundle) {
      for (const chunk of Object.values(bundle)) {
        for (const id of chunk.type === "chunk" ? Object.keys(chunk.modules) : []) {
          const found = /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(id);
          if (found) into.add(found[1]);
        }
      }
    },
  };
}
