/** One thread of the bare work (see bare.ts): answers each BareRequest with a BareResult. */
import { createHash } from "node:crypto";
import { closeSync, fdatasyncSync, openSync, readSync, writeSync } from "node:fs";
import { parentPort } from "node:worker_threads";
import { decompress, zlibInflate } from "../../src/formats/compression/index.ts";
import { loadIsal } from "../../src/sys/isal.ts";

export interface BareRequest {
  readonly from: string;
  readonly to: string;
}

export interface BareResult {
  readonly compressed: string;
  readonly uncompressed: string;
}

const CHUNK = 1 << 20;

async function work({ from, to }: BareRequest): Promise<BareResult> {
  const input = openSync(from, "r");
  const output = openSync(to, "wx");
  try {
    const compressed = createHash("sha256");
    const uncompressed = createHash("sha256");
    async function* source(): AsyncGenerator<Uint8Array> {
      const buffer = Buffer.allocUnsafe(CHUNK); // used up when the next chunk is asked for
      for (let length = readSync(input, buffer); length > 0; length = readSync(input, buffer)) {
        const bytes = buffer.subarray(0, length);
        compressed.update(bytes);
        yield bytes;
      }
    }
    for await (const piece of decompress(source(), "gzip", { inflate: loadIsal() ?? zlibInflate })) {
      uncompressed.update(piece);
      for (let done = 0; done < piece.length; ) done += writeSync(output, piece, done);
    }
    fdatasyncSync(output);
    return { compressed: `sha256:${compressed.digest("hex")}`, uncompressed: `sha256:${uncompressed.digest("hex")}` };
  } finally {
    closeSync(output);
    closeSync(input);
  }
}

const port = parentPort!; // this file only runs as a worker
loadIsal(); // looks for the library and tests it, before the clock
port.on("message", (request: BareRequest) => {
  void work(request).then((result) => port.postMessage(result)); // a rejection ends the worker with an "error" event
});
port.postMessage("ready");
