import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { filterThrough } from "./index.ts";

async function* pieces(count: number): AsyncGenerator<Uint8Array, void, undefined> {
  for (let i = 0; i < count; i++) yield Buffer.alloc(100_000, i);
}

async function sizeOf(source: AsyncIterable<Uint8Array>): Promise<number> {
  let size = 0;
  for await (const piece of source) size += piece.length;
  return size;
}

describe("filterThrough()", () => {
  test("hands through more than any pipe holds", async () => {
    assert.equal(await sizeOf(filterThrough("cat", [], pieces(100))), 10_000_000);
  });
  test("says what a command said that ended with an error, and that one is missing", async () => {
    await assert.rejects(sizeOf(filterThrough("sh", ["-c", "echo bad >&2; exit 1"], pieces(100))), {
      code: "INVALID_ARGUMENT",
      message: /bad/,
    });
    await assert.rejects(sizeOf(filterThrough("/no/such/program", [], pieces(1))), { code: "NOT_FOUND" });
  });
  test("fails with the error of its source, and ends the command", async () => {
    async function* failing() {
      yield* pieces(3);
      throw new RangeError("source");
    }
    await assert.rejects(sizeOf(filterThrough("cat", [], failing())), { name: "RangeError" });
  });
  test("ends the command when nobody reads on, and by its signal", async () => {
    for await (const piece of filterThrough("cat", [], pieces(1000))) {
      assert.ok(piece.length > 0);
      break;
    }
    const stop = new AbortController();
    const reading = (async () => {
      for await (const _ of filterThrough("cat", [], pieces(100_000), { signal: stop.signal })) stop.abort();
    })();
    await assert.rejects(reading, { code: "CANCELLED" });
  });
});
