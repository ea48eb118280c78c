import assert from "node:assert/strict";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { DataMap, dataBytes, dataRanges } from "./data-ranges.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

const MIB = 1 << 20;

test("dataRanges() gives the data of a sparse file, cut to the range, and nothing beyond its end", () =>
  withTemporaryDirectory((directory) => {
    const fd = openSync(join(directory, "file"), "w+");
    try {
      ftruncateSync(fd, 4 * MIB);
      writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, MIB);
      writeSync(fd, Buffer.alloc(8192, 1), 0, 8192, 3 * MIB);
      assert.deepEqual(
        [...dataRanges(fd, 0, 4 * MIB)],
        [
          { offset: MIB, length: 4096 },
          { offset: 3 * MIB, length: 8192 },
        ],
      );
      assert.deepEqual([...dataRanges(fd, MIB + 1024, 100)], [{ offset: MIB + 1024, length: 100 }]);
      assert.deepEqual([...dataRanges(fd, MIB + 4096, MIB)], []);
      assert.deepEqual([...dataRanges(fd, 3 * MIB + 4096, 100 * MIB)], [{ offset: 3 * MIB + 4096, length: 4096 }]);
      assert.deepEqual([...dataRanges(fd, 5 * MIB, 10)], []);
      assert.equal(dataBytes(fd, 0, 100 * MIB), 3 * 4096);
      assert.equal(dataBytes(fd, MIB + 1024, 3 * MIB + 4096), 3072 + 4096);
    } finally {
      closeSync(fd);
    }
  }));

test("DataMap.ranges() says what dataRanges() says, whatever ranges are asked for in ascending order", async () => {
  await withTemporaryDirectory((directory) => {
    const path = join(directory, "file");
    const fd = openSync(path, "w+");
    try {
      for (const at of [3, 4, 9, 20, 40, 41]) writeSync(fd, Buffer.alloc(4096, 1), 0, 4096, at * 4096);
      ftruncateSync(fd, 50 * 4096);
      const map = new DataMap(fd);
      for (let offset = 0; offset < 50 * 4096; offset += 3000) {
        for (const length of [1, 3000, 9000]) {
          assert.deepEqual([...map.ranges(offset, length)], [...dataRanges(fd, offset, length)], `${offset}+${length}`);
        }
      }
    } finally {
      closeSync(fd);
    }
  });
});
