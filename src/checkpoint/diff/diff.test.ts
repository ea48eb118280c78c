import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { FormatError } from "../../errors/index.ts";
import { openArchive, openArchiveStream } from "../archive/index.ts";
import {
  containerdArchive,
  crioArchive,
  HEAP,
  inlineArchive,
  PAGE,
  pages,
  podmanArchive,
  type SampleFile,
  tarOf,
} from "../testing/sample-archives.ts";
import { type CheckpointDifference, type DiffOptions, diffArchives } from "./index.ts";

const directory = mkdtempSync(join(tmpdir(), "shale-diff-"));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;

async function diff(before: Uint8Array, after: Uint8Array, options: DiffOptions = {}): Promise<CheckpointDifference> {
  const paths = [before, after].map((bytes) => {
    const path = join(directory, `${files++}.tar`);
    writeFileSync(path, bytes);
    return path;
  });
  await using a = await openArchive(paths[0]!);
  await using b = await openArchive(paths[1]!);
  return await diffArchives(a, b, options);
}

const changes = ({ files: found }: CheckpointDifference) =>
  found.map(({ path, change, what }) => [path, change, what.join(" ")]);

/** One process with these runs; each page is filled with its number. */
function withPages(
  runs: readonly { readonly address: number; readonly fill: readonly number[]; readonly flags?: number }[],
): Buffer {
  const present = runs.filter(({ flags = 4 }) => (flags & 4) !== 0);
  const memory = Buffer.concat(present.flatMap(({ fill }) => fill.map((value) => Buffer.alloc(PAGE, value))));
  const described = runs.map(({ address, fill, flags = 4 }) => ({ address, pages: fill.length, flags }));
  return podmanArchive({ processes: [{ pid: 1, ppid: 0, comm: "x", runs: described, memory }] });
}

describe("diffArchives()", () => {
  test("finds nothing between equal archives, also when one is compressed", async () => {
    const bytes = podmanArchive();
    for (const other of [bytes, gzipSync(bytes)]) {
      const found = await diff(bytes, other);
      assert.deepEqual([found.same, found.files], [true, []]);
      assert.deepEqual(
        found.processes.map(({ pid, change, memory }) => [pid, change, memory.same]),
        [
          [1, "same", 52],
          [7, "same", 2],
        ],
      );
    }
  });

  for (const [name, archive] of [
    ["CRI-O", crioArchive()],
    ["containerd", containerdArchive()],
    ["inline", inlineArchive()],
  ] as const) {
    test(`compares changed files and deletions of podman and ${name} by what they mean`, async () => {
      const found = await diff(podmanArchive(), archive);
      assert.deepEqual(
        changes(found).filter(([path]) => path!.startsWith("rootfs/")),
        [],
      );
      assert.ok(found.processes.every(({ change }) => change === "same"));
    });
  }

  test("when the dump was made is no difference", async () => {
    const retimed = podmanArchive();
    // the times of all members of the archive itself, with their checksums
    for (let at = 0; at + 512 <= retimed.length; at += 512) {
      if (retimed.toString("latin1", at, at + 11) !== "config.dump") continue;
      retimed.write("14500000000\0", at + 136, "latin1");
      retimed.fill(" ", at + 148, at + 156);
      const sum = retimed.subarray(at, at + 512).reduce((total, byte) => total + byte, 0);
      retimed.write(`${sum.toString(8).padStart(6, "0")}\0 `, at + 148, "latin1");
    }
    assert.ok(!retimed.equals(podmanArchive()));
    assert.deepEqual((await diff(podmanArchive(), retimed)).files, []);
  });

  test("names what changed of each file", async () => {
    const before: SampleFile[] = [
      { path: "same", content: "x" },
      { path: "content", content: "abc" },
      { path: "mode", content: "x" },
      { path: "gone", content: "x" },
      { path: "kind", content: "x" },
      { path: "link", header: { type: "symlink", linkTarget: "a" } },
      { path: "xattr", content: "x" },
    ];
    const later: SampleFile[] = [
      { path: "same", content: "x" },
      { path: "content", content: "abd" },
      { path: "mode", content: "x", header: { mode: 0o600, uid: 5 } },
      { path: "new", content: "x" },
      { path: "kind", header: { type: "symlink", linkTarget: "x" } },
      { path: "link", header: { type: "symlink", linkTarget: "b" } },
      { path: "xattr", content: "x", header: { xattrs: [{ name: "user.a", value: "b" }] } },
    ];
    const found = await diff(
      podmanArchive({ rootfs: before, deleted: ["/etc/a"] }),
      podmanArchive({ rootfs: later, deleted: ["/etc/b"] }),
    );
    assert.deepEqual(changes(found), [
      ["rootfs/content", "changed", "content"],
      ["rootfs/etc/a", "removed", ""],
      ["rootfs/etc/b", "added", ""],
      ["rootfs/gone", "removed", ""],
      ["rootfs/kind", "changed", "type size target content"],
      ["rootfs/link", "changed", "target"],
      ["rootfs/mode", "changed", "mode owner"],
      ["rootfs/new", "added", ""],
      ["rootfs/xattr", "changed", "xattrs"],
    ]);
  });

  test("compares memory by address: changed, added, removed, and what is in a parent", async () => {
    const before = withPages([
      { address: HEAP, fill: [1, 2, 3, 4] },
      { address: HEAP + 0x10_000, fill: [5, 6] },
      { address: HEAP + 0x20_000, fill: [7], flags: 1 },
    ]);
    const later = withPages([
      { address: HEAP + PAGE, fill: [2, 9, 9, 8] },
      { address: HEAP + 0x11_000, fill: [6, 1] },
    ]);
    const { processes } = await diff(before, later);
    const [{ change, memory } = assert.fail()] = processes;
    assert.equal(change, "changed");
    assert.deepEqual(memory, {
      ...{ same: 2, changed: 2, added: 2, removed: 2, inParent: 1 },
      ranges: [
        { address: HEAP, pages: 1, change: "removed" },
        { address: HEAP + 2 * PAGE, pages: 2, change: "changed" },
        { address: HEAP + 4 * PAGE, pages: 1, change: "added" },
        { address: HEAP + 0x10_000, pages: 1, change: "removed" },
        { address: HEAP + 0x12_000, pages: 1, change: "added" },
      ],
    });
  });

  test("processes that came or went, and files alone", async () => {
    const process = (pid: number) => ({
      pid,
      ppid: 0,
      comm: `p${pid}`,
      runs: [{ address: HEAP, pages: 3 }],
      memory: pages(3),
    });
    const [before, later] = [podmanArchive({ processes: [process(1)] }), podmanArchive({ processes: [process(2)] })];
    const found = await diff(before, later);
    assert.deepEqual(
      found.processes.map(({ pid, comm, change, memory }) => [pid, comm, change, memory.added, memory.removed]),
      [
        [1, "p1", "removed", 0, 3],
        [2, "p2", "added", 3, 0],
      ],
    );
    assert.deepEqual((await diff(before, later, { memory: false })).processes, []);
  });

  test("property: counts are those of a comparison page by page", async () => {
    const memory = fc.dictionary(fc.integer({ min: 0, max: 40 }).map(String), fc.integer({ min: 1, max: 3 }), {
      maxKeys: 30,
    });
    const archiveOf = (image: Readonly<Record<string, number>>) => {
      const numbers = Object.keys(image)
        .map(Number)
        .sort((a, b) => a - b);
      return withPages(numbers.map((page) => ({ address: HEAP + page * PAGE, fill: [image[page]!] })));
    };
    await fc.assert(
      fc.asyncProperty(memory, memory, async (before, later) => {
        const { processes } = await diff(archiveOf(before), archiveOf(later));
        const keys = new Set([...Object.keys(before), ...Object.keys(later)]);
        const count = (test: (a: number | undefined, b: number | undefined) => boolean) =>
          [...keys].filter((key) => test(before[key], later[key])).length;
        const { same, changed, added, removed } = processes[0]!.memory;
        assert.deepEqual(
          { same, changed, added, removed },
          {
            same: count((a, b) => a === b),
            changed: count((a, b) => a !== undefined && b !== undefined && a !== b),
            added: count((a) => a === undefined),
            removed: count((_, b) => b === undefined),
          },
        );
      }),
      { numRuns: 60 },
    );
  });

  test("refuses streams, and memory that is not there", async () => {
    const stream = (async function* () {
      yield podmanArchive();
    })();
    await using a = await openArchiveStream(stream, "stdin");
    await assert.rejects(diffArchives(a, a), { code: "FAILED_PRECONDITION" });
    const cut = podmanArchive({
      processes: [{ pid: 1, ppid: 0, comm: "x", runs: [{ address: HEAP, pages: 3 }], memory: pages(1) }],
    });
    await assert.rejects(diff(cut, cut), FormatError);
    await assert.rejects(diff(tarOf([{ path: "config.dump", content: "{}" }]).subarray(0, 700), cut), FormatError);
  });
});
