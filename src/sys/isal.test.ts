import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import { describe, it } from "node:test";
import { Worker } from "node:worker_threads";
import { loadIsal } from "./isal.ts";

/** Whether a package manager put the library where Debian and Fedora do. */
function isInstalled(): boolean {
  return ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"].some(
    (directory) => existsSync(directory) && readdirSync(directory).includes("libisal.so.2"),
  );
}

const WORKER = `
  import { parentPort, workerData } from "node:worker_threads";
  import { createHash } from "node:crypto";
  import { gzipSync } from "node:zlib";
  const { decompress } = await import(workerData.compression);
  const { loadIsal } = await import(workerData.isal);
  const inflate = loadIsal();
  const stream = gzipSync(Buffer.alloc(32 << 20, workerData.seed), { level: 1 });
  const source = async function* () { yield stream; };
  const hash = createHash("sha256");
  let size = 0;
  for await (const piece of decompress(source(), "gzip", { inflate })) {
    hash.update(piece);
    size += piece.length;
  }
  parentPort.postMessage({ name: inflate?.name, size });
`;

function startWorker(seed: number): Worker {
  const compression = new URL("../formats/compression/index.ts", import.meta.url).href;
  const isal = new URL("./isal.ts", import.meta.url).href;
  const source = new URL(`data:text/javascript,${encodeURIComponent(WORKER)}`);
  return new Worker(source, { workerData: { compression, isal, seed } });
}

describe("loadIsal()", () => {
  it("gives a backend exactly where the library is installed, and the same one each time", () => {
    assert.equal(loadIsal()?.name, isInstalled() ? "isa-l" : undefined);
    assert.equal(loadIsal(), loadIsal());
  });

  it("works in several worker threads at a time", async () => {
    const results = await Promise.all(
      [1, 2, 3].map(
        (seed) =>
          new Promise((resolve, reject) => {
            const worker = startWorker(seed);
            worker.on("message", resolve);
            worker.on("error", reject);
          }),
      ),
    );
    for (const result of results) assert.deepEqual(result, { name: loadIsal()?.name, size: 32 << 20 });
  });
});
