import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { injectFault, systemError } from "../sys/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { isFullDisk, Reserve } from "./reserve.ts";

const withReserve = (use: (reserve: Reserve, path: string) => void) =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "reserve");
    const reserve = new Reserve(directory, path);
    reserve.refill();
    use(reserve, path);
  });

const full = () => systemError("ENOSPC", "write", "x");

describe("Reserve", () => {
  test("takes blocks, not a hole, and a second refill changes nothing", () =>
    withReserve((reserve, path) => {
      const { size, blocks } = statSync(path);
      assert.ok(size >= 512 * 1024 && blocks * 512 >= size);
      reserve.refill();
      assert.equal(statSync(path).size, size);
    }));

  test("run() gives up a step for each failure, until the work succeeds; refill() brings all back", () =>
    withReserve((reserve, path) => {
      const before = statSync(path).size;
      let tries = 0;
      const result = reserve.run(() => {
        if (++tries < 3) throw full();
        return "done";
      });
      assert.deepEqual([result, tries], ["done", 3]);
      const after = statSync(path).size;
      assert.ok(after < before && after > before / 2, `${after} of ${before} bytes are left`);
      reserve.refill();
      assert.equal(statSync(path).size, before);
    }));

  test("run() ends with the failure when nothing is left, and at once for any other failure", () =>
    withReserve((reserve, path) => {
      assert.throws(
        () =>
          reserve.run(() => {
            throw full();
          }),
        { code: "ENOSPC" },
      );
      assert.equal(statSync(path).size, 0);
      let tries = 0;
      const failure = new RangeError("on purpose");
      assert.throws(
        () =>
          reserve.run(() => {
            tries++;
            throw failure;
          }),
        failure,
      );
      assert.equal(tries, 1);
    }));

  test("refill() that finds no room leaves what there is", () =>
    withReserve((reserve, path) => {
      assert.throws(
        () =>
          reserve.run(() => {
            throw full();
          }),
        { code: "ENOSPC" },
      );
      using _ = injectFault({ kind: "truncate", errno: "ENOSPC" });
      reserve.refill();
      assert.equal(statSync(path).size, 0);
    }));

  test("isFullDisk() tells a full disk from a limit of ours", () => {
    const sqlite = Object.assign(new Error("database or disk is full"), { errcode: 13 });
    assert.equal(isFullDisk(full()), true);
    assert.equal(isFullDisk(new ShaleError("RESOURCE_EXHAUSTED", "x", { cause: sqlite })), true);
    assert.equal(isFullDisk(new ShaleError("RESOURCE_EXHAUSTED", "too many entries")), false);
    assert.equal(isFullDisk(new ShaleError("DATA_LOSS", "x", { cause: sqlite })), false);
  });
});
