import assert from "node:assert/strict";
import { appendFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../../errors/index.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { noise } from "../testing/fixtures.ts";
import { FeedProgress, readAhead, readFeed } from "./feed.ts";

const never = new AbortController().signal;

async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const piece of pieces) parts.push(Buffer.from(piece)); // a copy: the buffer is used again
  return Buffer.concat(parts);
}

const withFile = (content: Buffer, use: (path: string) => Promise<void>) =>
  withTemporaryDirectory(async (directory) => {
    const path = join(directory, "download");
    writeFileSync(path, content);
    await use(path);
  });

const content = noise(3_000_000, "feed");

describe("readFeed()", () => {
  test("reads a range of a complete file", () =>
    withFile(content, async (path) => {
      const found = await collect(readFeed({ path, offset: 1000, length: 2_500_000 }, never));
      assert.ok(found.equals(content.subarray(1000, 2_501_000)));
    }));

  test("ends early where the file is shorter than promised: the digest tells", () =>
    withFile(content, async (path) => {
      assert.equal((await collect(readFeed({ path, offset: 0, length: 4_000_000 }, never))).length, 3_000_000);
    }));

  test("follows a file that grows, and ends when it is complete", () =>
    withFile(Buffer.alloc(0), async (path) => {
      const progress = new FeedProgress();
      const reading = collect(readFeed({ path, offset: 0, length: content.length, growth: progress.shared }, never));
      for (let at = 0; at < content.length; at += 700_000) {
        appendFileSync(path, content.subarray(at, at + 700_000));
        progress.advance(Math.min(content.length, at + 700_000));
        await new Promise((resolve) => setImmediate(resolve));
      }
      progress.complete();
      assert.ok((await reading).equals(content));
    }));

  test("gives no byte that the writer has not announced", () =>
    withFile(content, async (path) => {
      const progress = new FeedProgress();
      progress.advance(100);
      const feed = readFeed({ path, offset: 0, length: content.length, growth: progress.shared }, never);
      const first = await feed.next();
      assert.equal(first.value?.length, 100);
      progress.advance(150);
      progress.complete();
      assert.equal((await feed.next()).value?.length, 50);
      await feed.return(undefined);
    }));

  test("stops with ABORTED when the writer fails, also while it waits", () =>
    withFile(Buffer.alloc(0), async (path) => {
      const progress = new FeedProgress();
      const reading = collect(readFeed({ path, offset: 0, length: 10, growth: progress.shared }, never));
      progress.fail();
      await assert.rejects(reading, (error) => ShaleError.is(error, "ABORTED"));
    }));

  test("stops with CANCELLED on the signal, before the first byte and between two", () =>
    withFile(content, async (path) => {
      const controller = new AbortController();
      const feed = readFeed({ path, offset: 0, length: content.length }, controller.signal);
      await feed.next();
      controller.abort();
      await assert.rejects(feed.next(), (error) => ShaleError.is(error, "CANCELLED"));
      const late = readFeed({ path, offset: 0, length: 5 }, controller.signal);
      await assert.rejects(late.next(), (error) => ShaleError.is(error, "CANCELLED"));
    }));
});

describe("readAhead()", () => {
  async function* counting(count: number, asked: number[], failure?: Error) {
    for (let i = 0; i < count; i++) {
      asked.push(i);
      yield i;
    }
    if (failure !== undefined) throw failure;
  }
  const turn = () => new Promise((resolve) => setImmediate(resolve));

  test("asks for one more while the consumer waits for something else, and for no more than one", async () => {
    const asked: number[] = [];
    const ahead = readAhead(counting(4, asked));
    await ahead.next();
    assert.deepEqual(asked, [0]);
    for (let i = 0; i < 3; i++) await turn();
    assert.deepEqual(asked, [0, 1]);
    assert.deepEqual(await ahead.next(), { done: false, value: 1 });
    assert.deepEqual(await ahead.next(), { done: false, value: 2 });
    assert.deepEqual(await ahead.next(), { done: false, value: 3 });
    assert.deepEqual(await ahead.next(), { done: true, value: undefined });
  });

  test("fails in its turn, and not as a rejection that nobody handles", async () => {
    const ahead = readAhead(counting(1, [], new Error("broken")));
    assert.deepEqual(await ahead.next(), { done: false, value: 0 });
    for (let i = 0; i < 3; i++) await turn();
    await assert.rejects(ahead.next(), /broken/);
  });

  test("lets the source go, also where one more was asked for", async () => {
    const progress = new FeedProgress();
    await withFile(content, async (path) => {
      const source = readFeed({ path, offset: 0, length: content.length, growth: progress.shared }, never);
      progress.advance(2_000_000);
      const ahead = readAhead(source);
      await ahead.next();
      await turn();
      await ahead.return();
      assert.deepEqual(await source.next(), { done: true, value: undefined });
    });
  });
});
