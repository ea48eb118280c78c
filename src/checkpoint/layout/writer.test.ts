/** A source that is not what was planned fails the archive: between the two passes, and while it is read. */
import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, rmSync, truncateSync, unlinkSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { createNewFile } from "../../sys/index.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
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
