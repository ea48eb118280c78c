import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../errors/index.ts";
import { noise } from "../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { assemblyOf, AssemblyReader } from "./assembly.ts";
import type { CopyRun } from "./payload-plan.ts";

const BLOCK = 4096;

interface Files {
  readonly file: number;
  readonly path: string;
  readonly sources: readonly number[];
}

/** A file of `head` bytes of its own with room for the rest, and two sources of `size` bytes. */
function withFiles(head: number, size: number, use: (files: Files) => void): Promise<void> {
  return withTemporaryDirectory((directory) => {
    using closing = new DisposableStack();
    const open = (path: string, flags: string) => {
      const fd = openSync(path, flags);
      closing.defer(() => closeSync(fd));
      return fd;
    };
    const paths = ["a", "b"].map((name) => join(directory, name));
    for (const path of paths) writeFileSync(path, noise(size, path.at(-1)!));
    const path = join(directory, "file");
    writeFileSync(path, noise(head, "head"));
    truncateSync(path, head + 2 * size);
    use({ file: open(path, "r+"), path, sources: paths.map((each) => open(each, "r")) });
  });
}

describe("AssemblyReader", () => {
  test("reads and writes what the runs say, however the file is cut into pieces and whoever reads them", () =>
    withFiles(3 * BLOCK, 40 * BLOCK, ({ file, path, sources }) => {
      const run = fc.record({
        device: fc.nat(1),
        from: fc.nat(39),
        length: fc.integer({ min: 1, max: 9 }),
        gap: fc.nat(2),
      });
      const pieces = fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 });
      fc.assert(
        fc.property(fc.array(run, { maxLength: 12 }), pieces, fc.boolean(), (wanted, cuts, write) => {
          truncateSync(path, 3 * BLOCK);
          truncateSync(path, 83 * BLOCK);
          const expected = Buffer.concat([readFileSync(path)]);
          const runs: CopyRun[] = [];
          let to = 0;
          for (const { device, from, length, gap } of wanted) {
            const blocks = Math.min(length, 40 - from);
            to += gap * BLOCK;
            if (to + blocks * BLOCK > 80 * BLOCK) break;
            runs.push({ device, from: from * BLOCK, to, length: blocks * BLOCK });
            noise(40 * BLOCK, "ab"[device]!).copy(expected, 3 * BLOCK + to, from * BLOCK, (from + blocks) * BLOCK);
            to += blocks * BLOCK;
          }
          const assembly = assemblyOf(runs, sources, { offset: 3 * BLOCK, write });
          const readers = [new AssemblyReader(file, assembly), new AssemblyReader(file, assembly)];
          const read = Buffer.alloc(expected.length, 0xee);
          for (let at = 0, i = 0; at < read.length; i++) {
            const piece = read.subarray(at, at + cuts[i % cuts.length]! * BLOCK);
            readers[i % 2]!.read(piece, at);
            at += piece.length;
          }
          assert.ok(read.equals(expected));
          assert.equal(readFileSync(path).equals(expected), write || runs.length === 0);
        }),
        { numRuns: 60 },
      );
    }));

  test("leaves holes of a source as holes", () =>
    withFiles(BLOCK, 0, ({ file, path, sources }) => {
      const size = 512 * BLOCK;
      truncateSync(`/proc/self/fd/${sources[0]}`, size);
      truncateSync(path, BLOCK + size);
      const before = statSync(path).blocks;
      const assembly = assemblyOf([{ device: 0, from: 0, to: 0, length: size }], sources, {
        offset: BLOCK,
        write: true,
      });
      const piece = Buffer.alloc(BLOCK + size, 0xee);
      new AssemblyReader(file, assembly).read(piece, 0);
      assert.ok(piece.subarray(BLOCK).every((byte) => byte === 0));
      assert.equal(statSync(path).blocks, before);
    }));

  test("says DATA_LOSS where a source, or the file itself, ends too early", () =>
    withFiles(BLOCK, BLOCK, ({ file, sources }) => {
      const isLoss = (error: unknown) => ShaleError.is(error, "DATA_LOSS");
      const runs = [{ device: 1, from: 0, to: 0, length: 2 * BLOCK }];
      assert.throws(() => assemblyOf(runs, sources, { offset: 0, write: true }), isLoss);
      assert.throws(() => new AssemblyReader(file, undefined).read(Buffer.alloc(9 * BLOCK), 0), isLoss);
    }));
});
