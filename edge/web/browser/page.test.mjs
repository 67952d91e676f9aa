// The page, as people use it: every test has a browser context of its own, and all share one real server.
import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";
import {
  assets, choose, firstNames, freePort, makeWork, openBrowser, openPage, ready, settled, startServer, until, writeFile,
} from "./harness.mjs";

const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
let work, server, chromium;
const at = (name) => join(work, name);
const cat = () => at("grinning-cat.webp");
const open = (options) => openPage(chromium.browser, server.url, options);
const answers = (page) => page.locator(".card").first().waitFor();

before(async () => {
  work = await makeWork();
  [server, chromium] = await Promise.all([startServer({ gallery: at("gallery") }), openBrowser()]);
}, { timeout: 300_000 });
after(async () => {
  await chromium?.close();
  await server?.stop();
  if (work) rmSync(work, { recursive: true, force: true });
});

test("upload, type, filter, chain, back; no picture bytes leave the page", async () => {
  const page = await open();
  const sent = [];
  page.on("request", (request) => sent.push({ url: request.url(), method: request.method(), body: request.postDataBuffer() }));
  await ready(page);
  await choose(page, cat());
  await answers(page);
  assert.equal(await page.locator(".card").count(), 24);
  const before = await firstNames(page);
  assert.ok(before.slice(0, 5).some((name) => name.includes("cat")), before.join());
  assert.match(await page.locator(".cost").textContent(), /ms on this device · [\d,]+ bytes sent · [\d.]+ ms on the server/);

  await page.locator("#change").pressSequentially("is crying", { delay: 15 });
  await page.waitForFunction((names) => document.querySelector(".card .name")?.textContent !== names[0], before);
  await settled(page);
  assert.notDeepEqual(await firstNames(page), before);
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Remove the change “is crying”" }).waitFor();
  assert.equal(await page.locator("#change").inputValue(), "");

  await page.getByText("Filters", { exact: true }).click();
  await page.getByLabel("Key").selectOption("number");
  await page.getByLabel("Comparison").selectOption("less");
  await page.getByLabel("Value").fill("not a number");
  await page.getByRole("button", { name: "Add the filter" }).click();
  await page.getByText("type one").waitFor();
  await page.getByLabel("Value").fill("3");
  await page.getByRole("button", { name: "Add the filter" }).click();
  await page.waitForFunction(() => document.querySelectorAll(".card").length === 3);
  await page.getByRole("button", { name: /Remove the filter/ }).click();
  await page.waitForFunction(() => document.querySelectorAll(".card").length === 24);

  await page.getByRole("button", { name: "Remove the change “is crying”" }).click();
  await settled(page);
  await page.waitForFunction((names) => document.querySelector(".card .name")?.textContent === names[0], before);
  await page.locator(".card").nth(1).click();
  await page.getByText(`Started from “${before[1]}”`).waitFor();
  await page.waitForFunction((name) => ![...document.querySelectorAll(".card .name")].some((each) => each.textContent === name), before[1]);
  await page.getByRole("button", { name: "Back" }).click();
  await page.waitForFunction((names) => document.querySelector(".card .name")?.textContent === names[0], before);

  const picture = readFileSync(cat());
  const bodies = sent.filter(({ method }) => method !== "GET");
  assert.ok(bodies.length >= 5);
  for (const { url, body } of sent) {
    assert.ok(url.startsWith(server.url) || url.startsWith("blob:"), `a request to ${url}`);
    if (!body) continue;
    assert.ok(url.includes("/asymcir.v1.Retrieval/"), url);
    assert.ok(body.length <= 5000, `${body.length} bytes`);
    for (let start = 0; start + 16 <= picture.length; start += 16) {
      assert.equal(body.indexOf(picture.subarray(start, start + 16)), -1, "bytes of the picture were sent");
    }
  }
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("the self-test of the bundle passes in this browser", async () => {
  const page = await open();
  await ready(page);
  await page.getByRole("button", { name: "Test this device" }).click();
  const said = page.locator("footer p", { hasText: "test pictures" });
  await said.waitFor();
  assert.match(await said.textContent(), /encodes all \d+ test pictures right/);
  await page.context().close();
});

test("draw, undo, clear, on a narrow touch screen in the dark", async () => {
  const page = await open({ viewport: { width: 360, height: 760 }, hasTouch: true, colorScheme: "dark" });
  await ready(page);
  await page.getByRole("button", { name: "Draw" }).click();
  const box = await page.locator(".drawing canvas").boundingBox();
  await page.getByRole("button", { name: "Red pen" }).click();
  const stroke = async (row) => {
    await page.mouse.move(box.x + 40, box.y + row);
    await page.mouse.down();
    await page.mouse.move(box.x + 240, box.y + row + 30, { steps: 8 });
    await page.mouse.up();
  };
  const ink = () => page.evaluate(() => {
    const canvas = document.querySelector(".drawing canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let index = 1; index < data.length; index += 4) if (data[index] < 200) count++;
    return count;
  });
  await stroke(60);
  await answers(page);
  const one = await ink();
  assert.ok(one > 0);
  await stroke(160);
  await until(ink, (count) => count > one);
  await page.getByRole("button", { name: "Undo" }).click();
  await until(ink, (count) => count === one);
  await page.getByRole("button", { name: "Clear" }).click();
  await until(ink, (count) => count === 0);
  await page.getByText("Answers appear here").waitFor();
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= 360, `the page is ${wide} px wide`);
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("the camera's picture is searched with", async () => {
  const page = await open({ permissions: ["camera"] });
  await ready(page);
  await page.getByRole("button", { name: "Camera" }).click();
  await page.getByRole("button", { name: "Take the picture" }).click();
  await answers(page);
  await page.context().close();
});

test("with the keyboard alone", async () => {
  const page = await open();
  await ready(page);
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  const chooser = page.waitForEvent("filechooser");
  for (let tries = 0; tries < 12; tries++) {
    await page.keyboard.press("Tab");
    if ((await page.evaluate(() => document.activeElement.textContent)) === "Choose a picture") break;
  }
  await page.keyboard.press("Enter");
  await (await chooser).setFiles(cat());
  await answers(page);
  for (let tries = 0; tries < 12; tries++) {
    await page.keyboard.press("Tab");
    if ((await page.evaluate(() => document.activeElement.id)) === "change") break;
  }
  await page.keyboard.type("is blue");
  await page.keyboard.press("Enter");
  await page.getByRole("button", { name: "Remove the change “is blue”" }).focus();
  await page.keyboard.press("Enter");
  await settled(page);
  await page.locator(".card").first().focus();
  await page.keyboard.press("Enter");
  await page.getByText("Started from").waitFor();
  await page.context().close();
});

for (const colorScheme of ["light", "dark"]) {
  test(`axe finds nothing, ${colorScheme}`, async () => {
    const page = await open({ colorScheme, bypassCSP: true });
    await ready(page);
    const check = async (where) => {
      await page.addScriptTag({ content: axe });
      const { violations } = await page.evaluate(() => globalThis.axe.run());
      assert.deepEqual(violations.map(({ id, nodes }) => `${where}: ${id} ${nodes[0].html}`), []);
    };
    await check("empty");
    await page.getByRole("button", { name: "Draw" }).click();
    await page.locator(".drawing canvas").waitFor();
    await check("drawing");
    await page.getByRole("button", { name: "Upload" }).click();
    await choose(page, cat());
    await answers(page);
    await page.locator("#change").fill("is blue");
    await page.keyboard.press("Enter");
    await page.getByText("Filters", { exact: true }).click();
    await settled(page);
    await check("answers");
    await page.context().close();
  });
}

test("bad pictures: each says what to do, and a good one works afterwards", async () => {
  const page = await open();
  await ready(page);
  const heic = writeFile(work, "phone.heic", Buffer.concat([Buffer.from([0, 0, 0, 24]), Buffer.from("ftypheic"), Buffer.alloc(400)]));
  const bomb = Buffer.from(readFileSync(at("transparent.png")));
  bomb.writeUInt32BE(20000, 16);
  bomb.writeUInt32BE(10000, 20);
  for (const [file, sentence] of [
    [writeFile(work, "text.png", "this is text, not a picture, however long it may be"), /no picture that this browser can read/],
    [writeFile(work, "nothing.png", ""), /file is empty/],
    [heic, /does not read HEIC/],
    [writeFile(work, "bomb.png", bomb), /too many pixels/],
    [at("thin.png"), /too long and thin/],
  ]) {
    await choose(page, file);
    await page.locator(".problem", { hasText: sentence }).waitFor();
  }
  for (const name of ["one.png", "moving.gif", "transparent.png", "photo.jpg"]) {
    await choose(page, at(name));
    await answers(page);
    await settled(page);
    assert.equal(await page.locator(".problem").count(), 0, name);
  }
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("no connection: the page says so, keeps the query, and goes on", async () => {
  const page = await open();
  await ready(page);
  await choose(page, cat());
  await answers(page);
  await page.context().setOffline(true);
  await page.locator(".problem", { hasText: "You are offline" }).waitFor();
  await page.locator("#change").fill("is blue");
  await settled(page);
  await page.context().setOffline(false);
  await page.locator(".problem").waitFor({ state: "detached" });
  assert.equal(await page.locator("#change").inputValue(), "is blue");
  await answers(page);
  await page.context().close();
});

test("the server goes in the middle of typing, and comes back", async () => {
  const port = await freePort();
  let own = await startServer({ gallery: at("gallery"), port });
  const page = await openPage(chromium.browser, own.url);
  await ready(page);
  await choose(page, cat());
  await answers(page);
  await own.stop();
  await page.locator("#change").fill("is blue");
  await page.locator(".problem", { hasText: "No server answers" }).waitFor();
  own = await startServer({ gallery: at("gallery"), port });
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".problem").waitFor({ state: "detached" });
  await settled(page);
  assert.equal(await page.locator("#change").inputValue(), "is blue");
  await page.context().close();
  await own.stop();
});

test("a corrupted bundle, one of another space, a wrong key", async () => {
  for (const [device, sentence] of [["corrupted", /differs from its manifest/], ["other-space", /were not made for each other/]]) {
    const own = await startServer({ gallery: at("gallery"), device: at(device) });
    const page = await openPage(chromium.browser, own.url);
    await page.locator(".problem", { hasText: sentence }).waitFor();
    await page.context().close();
    await own.stop();
  }
  const page = await open();
  await page.route("**/asymcir.v1.Retrieval/Search", async (route) => {
    if ((await route.request().headerValue("authorization")) === "Bearer right") return route.continue();
    return route.fulfill({ status: 401, contentType: "application/json", body: '{"code":"unauthenticated","message":"no key"}' });
  });
  await ready(page);
  await choose(page, cat());
  await page.getByLabel("Key of the server").fill("right");
  await page.keyboard.press("Enter");
  await answers(page);
  await page.context().close();
});

test("a slow network: it says how far it is, and a picture may be given before", async () => {
  const page = await openPage(chromium.browser, "about:blank");
  const context = page.context();
  const session = await context.newCDPSession(page);
  await session.send("Network.enable");
  await session.send("Network.emulateNetworkConditions", { offline: false, latency: 60, downloadThroughput: 9e6 / 8, uploadThroughput: 9e6 / 8 });
  await page.goto(server.url);
  await page.getByText(/Loading the encoder: \d+ %/).waitFor();
  await choose(page, cat());
  await answers(page);
  await context.close();
});

test("a second visit without a connection shows the page, with its encoder, and says that it is offline", async () => {
  const own = await startServer({ gallery: at("gallery") });
  const page = await openPage(chromium.browser, own.url);
  await ready(page);
  await page.evaluate(() => navigator.serviceWorker.ready);
  await until(() => page.evaluate(async () => {
    const names = (await caches.keys()).filter((name) => name.startsWith("asymcir-page-"));
    return names.length ? (await (await caches.open(names[0])).keys()).length : 0;
  }), (files) => files >= 8);
  await own.stop();
  await page.reload();
  await page.locator(".problem", { hasText: "No server answers" }).waitFor();
  await page.context().setOffline(true); // after the reload: a document that is loaded in this state does not know it
  await page.locator(".problem", { hasText: "You are offline" }).waitFor();
  await ready(page);
  await choose(page, cat());
  await page.getByText("What the sentence looks at").waitFor();
  assert.deepEqual(page.problems, []);
  await page.context().close();
});

test("WebAssembly blocked by a policy: it says so", async () => {
  const page = await openPage(chromium.browser, "about:blank", { serviceWorkers: "block" });
  await page.route("**/assets/worker-*.js", async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, headers: { ...response.headers(), "content-security-policy": "script-src 'self' blob:" } });
  });
  await page.goto(server.url);
  await page.locator(".problem", { hasText: "WebAssembly may be blocked by a policy" }).waitFor();
  await page.context().close();
});

test("storage full: it says so once, and everything works", async () => {
  const page = await openPage(chromium.browser, "about:blank", { serviceWorkers: "block" });
  const session = await page.context().newCDPSession(page);
  await session.send("Storage.overrideQuotaForOrigin", { origin: new URL(server.url).origin, quotaSize: 10_000 });
  await page.goto(server.url);
  await page.locator(".notice", { hasText: "storage is full" }).waitFor();
  await ready(page);
  await choose(page, cat());
  await answers(page);
  await page.context().close();
});

test("a camera that may not be used: it says what to do", async () => {
  const page = await openPage(chromium.browser, "about:blank", { serviceWorkers: "block" });
  await page.route(server.url, async (route) => {
    const response = await route.fetch();
    await route.fulfill({ response, headers: { ...response.headers(), "permissions-policy": "camera=()" } });
  });
  await page.goto(server.url);
  await ready(page);
  await page.getByRole("button", { name: "Camera" }).click();
  await page.locator(".problem", { hasText: "The camera may not be used" }).waitFor();
  await page.getByRole("button", { name: "Upload" }).click();
  await choose(page, cat());
  await answers(page);
  assert.equal(await page.locator(".problem").count(), 0);
  await page.context().close();
});
