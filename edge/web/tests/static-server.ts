import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { AddressInfo } from "node:net";

/** Serves a folder on loopback; `change` may replace a file's bytes. */
export async function serveFolder(folder: string, change: (name: string, data: Buffer<ArrayBuffer>) => Buffer<ArrayBuffer> = (_, data) => data) {
  const asked: string[] = [];
  const server = createServer(async (request, response) => {
    const name = decodeURIComponent(request.url!.slice(1));
    asked.push(name);
    try {
      response.end(change(name, await readFile(join(folder, name))));
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}/`, asked, close: () => new Promise((resolve) => server.close(resolve)) };
}
