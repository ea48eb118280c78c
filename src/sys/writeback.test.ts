import assert from "node:assert/strict";
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { DirectoryWriteback, Writeback } from "./index.ts";
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

test("DirectoryWriteback follows files of another program, in a directory that comes later", async () => {
  await withTemporaryDirectory(async (parent) => {
    const directory = join(parent, "images");
    await using _ = new DirectoryWriteback(directory, (name) => name.startsWith("pages"));
    await setTimeout(50);
    mkdirSync(directory);
    const piece = Buffer.alloc(9 * 1024 * 1024, "data");
    const paths = ["pages-1.img", "pages-2.img", "other"].map((name) => join(directory, name));
    for (let i = 0; i < 3; i++) {
      for (const path of paths) appendFileSync(path, piece);
      await setTimeout(50);
    }
    const opened = readdirSync("/proc/self/fd").flatMap((fd) => {
      try {
        return [readlinkSync(`/proc/self/fd/${fd}`)];
      } catch {
        return [];
      }
    });
    assert.deepEqual(
      paths.map((path) => opened.filter((other) => other === path).length),
      [1, 1, 0],
    );
    for (const path of paths) assert.equal(statSync(path).size, 3 * piece.length);
  });
});
