// Draws the page's pictures for the docs. SERVER is the address of a page that `asymcir serve --web` serves, such as
// that of `make demo-web`.
import { choose, openBrowser, openPage, ready, root, settled } from "./harness.mjs";

const url = process.env.SERVER ?? "http://localhost:8080/";
const picture = process.env.PICTURE;
if (!picture) throw new Error("PICTURE names the file to search with, such as one of demo/assets/queries.zip, unpacked");
const { browser, close } = await openBrowser();
for (const [name, options] of [
  ["web-light", { colorScheme: "light" }],
  ["web-dark", { colorScheme: "dark" }],
  ["web-phone", { colorScheme: "light", viewport: { width: 390, height: 1100 }, hasTouch: true }],
]) {
  const page = await openPage(browser, url, options);
  await ready(page);
  await choose(page, picture);
  await page.locator(".card").first().waitFor();
  await page.locator("#change").fill("is crying");
  await settled(page);
  await page.waitForFunction(() =>
    [...document.images].filter((image) => image.getBoundingClientRect().top < innerHeight).every((image) => image.complete && image.naturalWidth));
  await page.screenshot({ path: `${root}docs/images/${name}.png` });
  await page.context().close();
}
await close();
