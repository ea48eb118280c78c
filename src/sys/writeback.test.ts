import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Writeback } from "./index.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

test("Writeback follows a file that grows, and changes nothing of it", async () => {
  await withTemporaryDirectory(async (directory) => {
    const path = join(directory, "file");
    const fd = openSync(path, "w+");
    const piece = Buffer.alloc(5 * 1024 * 1024, "data");
    const writeback = new Writeback(fd);
    for (let i = 0; i < 6; i++) {
      writeSync(fd, piece);
      writeback.reach((i + 1) * piece.length); // also while the call for earlier parts is under way
      if (i === 3) await writeback.settled();
    }
    await writeback.settled();
    await writeback.settled();
    closeSync(fd);
    assert.ok(readFileSync(path).equals(Buffer.concat(Array.from({ length: 6 }, () => piece))));
  });
});

test("Writeback is advice: a descriptor that can't take it is no error", async () => {
  const writeback = new Writeback(-1);
  writeback.reach(1024 * 1024 * 1024);
  await writeback.settled();
});
