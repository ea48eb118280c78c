/** A source that is not what was planned fails the archive: between the two passes, and while it is read. */
import assert from "node:assert/strict";
import {
  appendFileSync,
  closeSync,
  mkdirSync,
  openSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { createNewFile } from "../../sys/index.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { openArchive } from "../archive/index.ts";
import type { EntrySource } from "../sources/entry.ts";
import { LowerLayers } from "../sources/lower.ts";
import { Tree, treeSource } from "../sources/tree.ts";
import { UpperSource } from "../sources/upper.ts";
import { noise } from "../testing/samples.ts";
import { FileOutput, pieceSink, StreamOutput } from "./output.ts";
import { document, measure, type PlannedMember } from "./plan.ts";
import { writeArchive } from "./writer.ts";

const ALIGNMENT = { unit: 4096, from: 16384 };
const ROOTFS = { kind: "rootfs", name: "rootfs-diff.tar" } as const;

async function plan(tree: Tree): Promise<PlannedMember[]> {
  const source = new UpperSource(tree, new LowerLayers([]));
  const config = document({ kind: "config", name: "config.dump" }, "config.dump", Buffer.from("{}"));
  return [config, await measure({ section: ROOTFS, path: "rootfs-diff.tar", source }, ALIGNMENT, undefined)];
}

async function write(members: readonly PlannedMember[], directory: string, toFile: boolean): Promise<number> {
  using file = createNewFile(join(directory, "archive"));
  const output = toFile ? new FileOutput(file.fd, 4096) : new StreamOutput(pieceSink(() => Promise.resolve()));
  const settings = { alignment: ALIGNMENT, digestData: false, inKernel: toFile };
  return (await writeArchive(members, { writer: "test", opaque: [] }, output, settings)).size;
}

const CHANGES: readonly (readonly [string, (upper: string) => void])[] = [
  ["grows", (upper) => appendFileSync(join(upper, "large"), "more")],
  ["shrinks", (upper) => truncateSync(join(upper, "large"), 10)],
  ["is written to", (upper) => writeFileSync(join(upper, "large"), noise(100_000, 2))],
  [
    "is replaced by another one",
    (upper) => {
      unlinkSync(join(upper, "large"));
      writeFileSync(join(upper, "large"), noise(100_000, 3));
    },
  ],
  ["gets another time", (upper) => utimesSync(join(upper, "small"), 1, 1)],
];

describe("writeArchive()", () => {
  for (const toFile of [true, false]) {
    for (const [what, change] of CHANGES) {
      test(`says ABORTED when a file ${what} after it was planned, ${toFile ? "for a file" : "for a pipe"}`, async () => {
        await withTemporaryDirectory(async (directory) => {
          const upper = join(directory, "upper");
          mkdirSync(upper);
          writeFileSync(join(upper, "large"), noise(100_000));
          writeFileSync(join(upper, "small"), "small");
          using tree = new Tree(upper, "the tree");
          const members = await plan(tree);
          assert.ok((await write(members, directory, toFile)) > 100_000);
          change(upper);
          await assert.rejects(write(members, directory, toFile), { code: "ABORTED" });
        });
      });
    }

    test(`says ABORTED when a file changes while it is read, ${toFile ? "for a file" : "for a pipe"}`, async () => {
      await withTemporaryDirectory(async (directory) => {
        const upper = join(directory, "upper");
        mkdirSync(upper);
        writeFileSync(join(upper, "large"), noise(100_000));
        using tree = new Tree(upper, "the tree");
        const source: EntrySource = {
          async *entries() {
            for await (const { header, content } of treeSource(tree).entries()) {
              if (content === undefined || content instanceof Uint8Array) {
                yield { header };
                continue;
              }
              const open = () => {
                const opened = content.open();
                appendFileSync(join(upper, "large"), "x"); // after it was opened and found right
                return opened;
              };
              yield { header, content: { open } };
            }
          },
        };
        const member = await measure({ section: ROOTFS, path: "rootfs-diff.tar", source }, ALIGNMENT, undefined);
        await assert.rejects(write([member], directory, toFile), { code: "ABORTED" });
      });
    });
  }

  test("sees a signal while it plans and writes small files: no turn of the event loop came between them", async () => {
    await withTemporaryDirectory(async (directory) => {
      const upper = join(directory, "upper");
      mkdirSync(upper);
      for (let i = 0; i < 2000; i++) writeFileSync(join(upper, `${i}`), "small");
      using tree = new Tree(upper, "the tree");
      const source = new UpperSource(tree, new LowerLayers([]));
      const soon = () => {
        const controller = new AbortController();
        setImmediate(() => controller.abort(new Error("stop")));
        return controller.signal;
      };
      const member = { section: ROOTFS, path: "rootfs-diff.tar", source } as const;
      await assert.rejects(measure(member, ALIGNMENT, soon()), /stop/);
      const measured = await measure(member, ALIGNMENT, undefined);
      using file = createNewFile(join(directory, "archive"));
      await using output = new FileOutput(file.fd, 4096);
      const settings = { alignment: ALIGNMENT, digestData: false, inKernel: true, signal: soon() };
      await assert.rejects(writeArchive([measured], { writer: "test", opaque: [] }, output, settings), /stop/);
    });
  });

  test("writes files over 256 MiB in slices, their ends and holes in place", async () => {
    await withTemporaryDirectory(async (directory) => {
      const upper = join(directory, "upper");
      mkdirSync(upper);
      const size = 600 * 1024 * 1024 + 5;
      const places = [0, 256 * 1024 * 1024 - 3, 512 * 1024 * 1024, size - 6];
      const fd = openSync(join(upper, "large"), "w");
      for (const place of places) writeSync(fd, Buffer.from("marks!"), 0, 6, place);
      closeSync(fd);
      using tree = new Tree(upper, "the tree");
      const members = await plan(tree);
      const path = join(directory, "archive");
      {
        using file = createNewFile(path);
        await using output = new FileOutput(file.fd, 4096);
        const settings = { alignment: ALIGNMENT, digestData: false, inKernel: true };
        await writeArchive(members, { writer: "test", opaque: [] }, output, settings);
        file.publish();
      }
      await using archive = await openArchive(path);
      for await (const member of archive.members()) {
        if (member.section.kind !== "rootfs") continue;
        for await (const { path: name, entry, content } of (await member.open()).entries()) {
          if (name !== "large") continue;
          assert.equal(entry.size, size);
          const { fd: from, offset } = content.place()!;
          const read = Buffer.alloc(6);
          for (const place of places) {
            readSync(from, read, 0, 6, offset + place);
            assert.equal(read.toString(), "marks!", `at ${place}`);
          }
        }
      }
      assert.ok(statSync(path).blocks * 512 < 10_000_000, "holes stay holes");
    });
  });

  test("goes again through trees of more entries than are remembered, and notices new ones", async () => {
    await withTemporaryDirectory(async (directory) => {
      const upper = join(directory, "upper");
      mkdirSync(upper);
      for (let i = 0; i < 300; i++) {
        mkdirSync(join(upper, `${i}`));
        for (let j = 0; j < 220; j++) mkdirSync(join(upper, `${i}/${j}`)); // 66,301 entries
      }
      using tree = new Tree(upper, "the tree");
      const members = await plan(tree);
      assert.ok((await write(members, directory, true)) > 66_301 * 1024);
      rmSync(join(upper, "7/7"), { recursive: true });
      await assert.rejects(write(members, directory, true), { code: "ABORTED" });
      mkdirSync(join(upper, "7/7"));
      writeFileSync(join(upper, "new"), "x");
      await assert.rejects(write(members, directory, true), { code: "ABORTED" });
    });
  });
});
