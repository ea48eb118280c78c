import assert from "node:assert/strict";
import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { dataRanges } from "./data-ranges.ts";
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
    } finally {
      closeSync(fd);
    }
  }));
