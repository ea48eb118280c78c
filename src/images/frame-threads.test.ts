import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gunzipSync, zstdDecompressSync } from "node:zlib";
import { compressFrames, type FrameBatch } from "../formats/compression/index.ts";
import { FrameThreads } from "./frame-threads.ts";

const batchOf = (...texts: readonly string[]): FrameBatch => ({
  bytes: Buffer.from(texts.join("")),
  lengths: texts.map((text) => text.length),
});

/** With a buffer of its own, which goes to the thread. */
const own = ({ bytes, lengths }: FrameBatch): FrameBatch => ({ bytes: new Uint8Array(bytes), lengths });

describe("FrameThreads", () => {
  for (const settings of [
    { kind: "zstd", level: 7 },
    { kind: "gzip", level: 6 },
  ] as const) {
    test(`gives the frames of ${settings.kind} that one thread gives, in the order of the calls`, async () => {
      await using threads = new FrameThreads(settings, 2);
      const batches = Array.from({ length: 12 }, (_, i) => batchOf(`first ${i} `.repeat(i * 500 + 1), "second", "x"));
      const results = await Promise.all(batches.map((batch) => threads.compress(own(batch))));
      for (const [i, { bytes, lengths }] of results.entries()) {
        const expected = compressFrames(batches[i]!, settings);
        assert.deepEqual([Buffer.from(bytes), lengths], [Buffer.from(expected.bytes), expected.lengths]);
        const first = bytes.subarray(0, lengths[0]);
        const text = settings.kind === "zstd" ? zstdDecompressSync(first) : gunzipSync(first);
        assert.equal(text.toString(), `first ${i} `.repeat(i * 500 + 1));
      }
    });
  }

  test("rejects what is under way when it is ended, and what comes after", async () => {
    const threads = new FrameThreads({ kind: "zstd", level: 3 }, 1);
    const running = threads.compress(own(batchOf("a")));
    const waiting = threads.compress(own(batchOf("b")));
    const settled = Promise.allSettled([running, waiting]);
    await threads[Symbol.asyncDispose]();
    assert.deepEqual(
      (await settled).map((one) => (one.status === "rejected" ? one.reason.code : one.status)),
      ["CANCELLED", "CANCELLED"],
    );
    await assert.rejects(threads.compress(batchOf("c")), RangeError);
    await threads[Symbol.asyncDispose]();
  });

  test("tells when a thread died, and goes on with another", async () => {
    await using threads = new FrameThreads({ kind: "zstd", level: 3 }, 1);
    const nonsense = { bytes: new Uint8Array(1), lengths: undefined as never };
    await assert.rejects(threads.compress(nonsense), { code: "INTERNAL", message: /a thread died/ });
    const { bytes } = await threads.compress(own(batchOf("again")));
    assert.equal(zstdDecompressSync(bytes).toString(), "again");
  });
});
