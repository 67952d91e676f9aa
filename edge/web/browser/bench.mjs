// What asymcir_benchmarks.device.web drives: reads a line of JSON, measures in a headless Chromium, answers with a line.
//
//   {"do": "run", "model": "encoder" | "tower", "sides": [height, width], "repeats": n}
//                                                               ms of each run in onnxruntime-web, one thread
//   {"do": "shutter", "repeats": n}                             ms from the shutter to answers in the page, warm
//   {"do": "visit"}                                             s to the first answer, first and second visit, throttled
//
// GALLERY, ENCODER, FLOAT ("1": weights become float at load), TOWER (an ONNX file) and PICTURE come by the environment.
import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { openBrowser, openPage, ready, startServer, until } from "./harness.mjs";

const { GALLERY, ENCODER, TOWER, PICTURE, FLOAT } = process.env;
const LINK = { offline: false, latency: 60, downloadThroughput: 9e6 / 8, uploadThroughput: 9e6 / 8 };
const runtime = fileURLToPath(new URL("../node_modules/onnxruntime-web/dist", import.meta.url));
const TYPES = { mjs: "text/javascript", wasm: "application/wasm" };

const files = createServer((request, response) => {
  if (request.url === "/") return response.setHeader("content-type", "text/html").end("<!doctype html><title>bench</title>");
  const path = { "/encoder": ENCODER, "/tower": TOWER }[request.url] ?? `${runtime}${request.url}`;
  if (!path || path.includes("..") || !existsSync(path)) return response.writeHead(404).end();
  response.setHeader("content-type", TYPES[path.split(".").pop()] ?? "application/octet-stream");
  return createReadStream(path).pipe(response);
}).listen(0, "127.0.0.1");
await new Promise((resolve) => files.once("listening", resolve));
const [{ browser, close }, server] = await Promise.all([openBrowser(), startServer({ gallery: GALLERY })]);
const own = await openPage(browser, `http://localhost:${files.address().port}/`);

async function run({ model, sides, repeats }) {
  return own.evaluate(async ([name, [height, width], count, float]) => {
    globalThis.sessions ??= {};
    const ort = await import("/ort.wasm.min.mjs");
    ort.env.wasm.numThreads = 1;
    const options = { executionProviders: ["wasm"], ...(name === "encoder" && float ? { extra: { session: { disable_quant_qdq: "1" } } } : {}) };
    const session = (globalThis.sessions[name] ??= await ort.InferenceSession.create(
      new Uint8Array(await (await fetch("/" + name)).arrayBuffer()), options,
    ));
    const [input] = session.inputNames;
    const tensor = name === "encoder"
      ? new ort.Tensor("uint8", Uint8Array.from({ length: height * width * 3 }, (_, index) => (index * 7) % 256), [height, width, 3])
      : new ort.Tensor("float32", Float32Array.from({ length: 3 * height * width }, (_, index) => (index % 255) / 255), [1, 3, height, width]);
    const wanted = name === "encoder" ? ["sentence_tokens"] : [...session.outputNames];
    const times = [];
    for (let each = 0; each < count; each++) {
      const started = performance.now();
      await session.run({ [input]: tensor }, wanted);
      times.push(performance.now() - started);
    }
    return times;
  }, [model, sides, repeats, FLOAT === "1"]);
}

async function shutter({ repeats }) {
  const page = await openPage(browser, server.url, { permissions: ["camera"] });
  await ready(page);
  const times = [];
  let pictureBytes = 0;
  for (let each = 0; each < repeats; each++) {
    await page.getByRole("button", { name: "Camera" }).click();
    await page.locator(".camera button:enabled").waitFor();
    pictureBytes ||= await page.evaluate(async () => {
      const video = document.querySelector("video");
      const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
      canvas.getContext("2d").drawImage(video, 0, 0);
      return (await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 })).size;
    });
    times.push(await page.evaluate(() => new Promise((resolve) => {
      const results = document.querySelector(".results");
      const started = performance.now();
      let waited = false;
      const observer = new MutationObserver(() => {
        if (results.getAttribute("aria-busy") === "true") waited = true;
        else if (waited) {
          observer.disconnect();
          resolve(performance.now() - started);
        }
      });
      observer.observe(results, { attributes: true, attributeFilter: ["aria-busy"] });
      document.querySelector(".camera button").click();
    })));
  }
  const sentBytes = Number((await page.locator(".cost").textContent()).match(/([\d,]+) bytes sent/)[1].replaceAll(",", ""));
  await page.context().close();
  return { times, pictureBytes, sentBytes };
}

async function visit() {
  const context = await browser.newContext();
  const open = async () => {
    const page = await context.newPage();
    const session = await context.newCDPSession(page);
    let bytes = 0;
    session.on("Network.loadingFinished", ({ encodedDataLength }) => (bytes += encodedDataLength));
    await session.send("Network.enable");
    await session.send("Network.emulateNetworkConditions", LINK);
    const started = performance.now();
    await page.goto(server.url, { waitUntil: "commit" });
    await page.locator('input[type="file"]').setInputFiles(PICTURE);
    await page.locator(".card").first().waitFor();
    return { page, seconds: (performance.now() - started) / 1000, bytes };
  };
  const first = await open();
  await until(() => first.page.evaluate(async () => {
    const [name] = (await caches.keys()).filter((each) => each.startsWith("asymcir-page-"));
    return name ? (await (await caches.open(name)).keys()).length : 0;
  }), (kept) => kept >= 8);
  await first.page.close();
  const second = await open();
  await context.close();
  return { firstS: first.seconds, firstBytes: first.bytes, secondS: second.seconds, secondBytes: second.bytes };
}

const actions = { run, shutter, visit };
for await (const line of createInterface(process.stdin)) {
  const order = JSON.parse(line);
  console.log(JSON.stringify(await actions[order.do](order)));
}
await close();
await server.stop();
files.close();
