import assert from "node:assert/strict";
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { noise } from "../testing/fixtures.ts";
import { InlineSpool } from "./inline-spool.ts";

const MiB = 1 << 20;

describe("InlineSpool", () => {
  test("gives back every payload, in any order, below and above the memory limit of 24 MiB", () =>
    withTemporaryDirectory((directory) => {
      const spool = new InlineSpool(join(directory, "spool"));
      const pattern = noise(2 * MiB + 1, "pattern"); // no divisor of a piece, so that places differ
      const twice = Buffer.concat([pattern, pattern]);
      const at = (offset: number, length: number) => {
        const start = offset % pattern.length;
        return twice.subarray(start, start + length);
      };
      const places: { offset: number; length: number }[] = [];
      for (let number = 0; spool.size < 27 * MiB; number++) {
        const length = 1 + ((number * 7919) % 2048);
        places.push({ offset: spool.size, length });
        spool.append(at(spool.size, length));
        if (spool.size < 24 * MiB) assert.deepEqual(readdirSync(directory), []);
      }
      assert.equal(statSync(join(directory, "spool")).size, 24 * MiB);
      const crossing = places.filter(
        ({ offset, length }) => Math.floor(offset / MiB) !== Math.floor((offset + length - 1) / MiB),
      );
      assert.ok(crossing.length > 10);
      const order = [...places.filter((_, i) => i % 97 === 0), ...crossing.toReversed(), places.at(-1)!, places[0]!];
      for (const { offset, length } of order) {
        assert.ok(at(offset, length).equals(spool.read(offset, length)), `${length} bytes at ${offset}`);
      }
      spool.close();
      assert.deepEqual(readdirSync(directory), []);
    }));

  test("reads nothing from nothing", () => {
    const spool = new InlineSpool("/nonexistent/spool");
    assert.equal(spool.read(0, 0).length, 0);
    spool.append(Buffer.from("abc"));
    assert.equal(spool.read(3, 0).length, 0);
    spool.close();
  });
});
