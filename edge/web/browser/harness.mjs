// A real server on loopback and a real Chromium: what every browser test starts from.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const root = fileURLToPath(new URL("../../../", import.meta.url));
export const assets = `${root}demo/assets/`;
const python = process.env.PYTHON ?? `${root}.venv-dev/bin/python`;
const browserPath = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser"].find(existsSync);
/** Of one wait, ms: above what a page needs on a machine that is busy with other work. */
const PATIENCE_MS = 120_000;
const FLAGS = [
  "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
  "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
];

export async function runPython(...words) {
  const child = spawn(python, words, { cwd: root, env: { ...process.env, OMP_NUM_THREADS: "1" } });
  let [out, err] = ["", ""];
  child.stdout.on("data", (data) => (out += data));
  child.stderr.on("data", (data) => (err += data));
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`${words.slice(0, 6).join(" ")} ended with ${code}: ${err}`);
  return out;
}

/** Writes a few pictures of the demo, and a list of a small gallery; returns the folder. */
export async function makeWork() {
  const work = mkdtempSync(join(tmpdir(), "asymcir-web-"));
  await runPython(fileURLToPath(new URL("make_work.py", import.meta.url)), work);
  return work;
}

export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** Runs `asymcir serve` with the page; `stop` ends it. */
export async function startServer({ gallery, port = 0, device = `${assets}device`, page = true, more = [] }) {
  const words = ["-m", "asymcir_edge", "serve", "--server-bundle", `${assets}server`, "--gallery", `emoji=${gallery}`, "--port", "0"];
  words.push("--http", String(port), "--device-bundle", device, "--web", ...(typeof page === "string" ? [page] : []), ...more);
  const child = spawn(python, words, { cwd: root, env: { ...process.env, OMP_NUM_THREADS: "1" } });
  let errors = "";
  child.stderr.on("data", (data) => (errors += data));
  const lines = createInterface(child.stdout);
  const [grpc, address] = await new Promise((resolve, reject) => {
    lines.on("line", (line) => {
      const found = /on (\S+), HTTP on (\S+)/.exec(line);
      if (found) resolve(found.slice(1));
    });
    child.on("close", (code) => reject(new Error(`the server ended with ${code}: ${errors}`)));
  });
  const stop = async () => {
    if (child.exitCode !== null) return;
    child.kill("SIGTERM");
    await once(child, "close");
  };
  return { url: `http://localhost:${address.split(":").pop()}/`, port: Number(address.split(":").pop()), grpc, stop };
}

export async function openBrowser() {
  if (!browserPath) throw new Error("no Chromium: apt-get install -y chromium, or set CHROMIUM");
  const userData = mkdtempSync(join(tmpdir(), "asymcir-chromium-"));
  const browser = await chromium.launch({ executablePath: browserPath, headless: true, args: FLAGS, timeout: PATIENCE_MS });
  return {
    browser,
    close: async () => {
      await browser.close();
      rmSync(userData, { recursive: true, force: true });
    },
  };
}

/** Opens the page in a context of its own: no cookies, no cache. */
export async function openPage(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, reducedMotion: "reduce", ...options });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(error.message));
  await page.goto(url);
  return page;
}

export const ready = (page) => page.locator(".status", { hasText: /^Ready$|answer/ }).waitFor();
export const choose = (page, file) => page.locator('input[type="file"]').setInputFiles(file);
export const firstNames = async (page, count = 10) => (await page.locator(".card .name").allTextContents()).slice(0, count);

/** Waits until the answers are those of the query. The page says that it waits as soon as the query changes. */
export const settled = (page) => page.locator('.results[aria-busy="false"]').waitFor();

/** Waits until `measure` gives what `wanted` accepts; returns that. For what a page shows later than a click. */
export async function until(measure, wanted) {
  const end = performance.now() + PATIENCE_MS;
  for (;;) {
    const found = await measure();
    if (wanted(found)) return found;
    if (performance.now() > end) throw new Error(`waited for ${wanted}, got ${found}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export function writeFile(folder, name, data) {
  writeFileSync(join(folder, name), data);
  return join(folder, name);
}
