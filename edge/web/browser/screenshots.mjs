// Draws the docs' pictures of the page and of `asymcir explain`, from a gallery that `make demo-web` builds.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { assets, choose, openBrowser, openPage, ready, root, runPython, settled, startServer } from "./harness.mjs";

const gallery = process.env.GALLERY;
if (!gallery) throw new Error("GALLERY names a gallery of the demo's pictures with thumbnails: the Makefile builds one");
const CHANGE = "is crying";
const TO_FILE = "import sys, pathlib, zipfile; pathlib.Path(sys.argv[2]).write_bytes(zipfile.ZipFile(sys.argv[1]).read('grinning-cat.webp'))";
const TO_WEBP = "import sys; from PIL import Image; Image.open(sys.argv[1]).convert('RGB').save(sys.argv[2], quality=82, method=6)";

const work = mkdtempSync(join(tmpdir(), "asymcir-shots-"));
const picture = join(work, "grinning-cat.webp");
const server = await startServer({ gallery });
const { browser, close } = await openBrowser();

async function shoot(page, name, options = {}) {
  await page.waitForFunction(() =>
    [...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight).every((image) => image.complete && image.naturalWidth));
  await page.screenshot({ path: join(work, `${name}.png`), ...options });
  await runPython("-c", TO_WEBP, join(work, `${name}.png`), `${root}docs/images/${name}.webp`);
  await page.context().close();
}

try {
  await runPython("-c", TO_FILE, `${assets}queries.zip`, picture);
  for (const [name, options] of [
    ["web-light", { colorScheme: "light" }],
    ["web-dark", { colorScheme: "dark" }],
    ["web-phone", { colorScheme: "light", viewport: { width: 390, height: 1100 }, hasTouch: true }],
  ]) {
    const page = await openPage(browser, server.url, options);
    await ready(page);
    await choose(page, picture);
    await page.locator(".card").first().waitFor();
    await page.locator("#change").fill(CHANGE);
    await settled(page);
    await shoot(page, name);
  }
  const sheet = join(work, "explain.html");
  await runPython(
    "-m", "asymcir_edge", "explain", "--image", picture, "--text", CHANGE, "--server", server.grpc, "--http", server.url,
    "--device-bundle", "demo/assets/device", "--server-bundle", "demo/assets/server", "--top-k", "6", "--out", sheet,
  );
  const page = await openPage(browser, pathToFileURL(sheet).href, { colorScheme: "light", viewport: { width: 820, height: 900 } });
  await shoot(page, "explain", { fullPage: true });
} finally {
  await close();
  await server.stop();
  rmSync(work, { recursive: true });
}
