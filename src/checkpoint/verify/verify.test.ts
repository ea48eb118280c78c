import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import { ShaleError } from "../../errors/index.ts";
import { encodePagemap } from "../../formats/criu/testing/images.ts";
import { openArchive } from "../archive/index.ts";
import { convertCheckpoint } from "../convert/index.ts";
import {
  containerdArchive,
  crioArchive,
  inlineArchive,
  pages,
  podmanArchive,
  tarOf,
} from "../testing/sample-archives.ts";
import { type Verification, verifyArchive } from "./index.ts";

const directory = mkdtempSync(join(tmpdir(), "shale-verify-"));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;

async function verify(bytes: Uint8Array): Promise<Verification> {
  const path = join(directory, `${files++}.tar`);
  writeFileSync(path, bytes);
  await using archive = await openArchive(path);
  return await verifyArchive(archive);
}

/** As shale writes it, with digests of everything. */
async function digested(digestData: boolean): Promise<Buffer> {
  const input = join(directory, `${files++}.tar`);
  const output = join(directory, `${files++}.tar`);
  writeFileSync(input, podmanArchive());
  await convertCheckpoint(input, "podman", { output, writer: "test", digestData });
  return readFileSync(output);
}

describe("verifyArchive()", () => {
  test("hears a signal inside of one large member", async () => {
    const path = join(directory, "large.tar");
    const memory = Buffer.alloc(96 * 1024 * 1024, 1);
    writeFileSync(path, tarOf([{ path: "checkpoint/pages-1.img", content: memory }]));
    const stop = new AbortController();
    await using archive = await openArchive(path, { signal: stop.signal });
    setImmediate(() => stop.abort());
    let seen = 0;
    const onBytes = (count: number) => {
      seen += count;
    };
    await assert.rejects(verifyArchive(archive, { onBytes }), { code: "CANCELLED" });
    assert.ok(seen < memory.length, `${seen} bytes were read`);
    rmSync(path);
  });

  for (const [name, bytes] of [
    ["podman", podmanArchive()],
    ["crio", crioArchive()],
    ["containerd", containerdArchive()],
    ["inline", inlineArchive()],
    ["a compressed one", gzipSync(podmanArchive())],
  ] as const) {
    test(`${name}: sound, and without digests`, async () => {
      const found = await verify(bytes);
      assert.deepEqual([found.sound, found.writer, found.problems], [true, undefined, []]);
      assert.ok(found.sections.every(({ state }) => state === "unknown"));
    });
  }

  test("an archive of shale has the digests that were written, of its data too if they were", async () => {
    const all = await verify(await digested(true));
    assert.deepEqual([all.sound, all.writer], [true, "test"]);
    assert.ok(all.sections.every(({ state }) => state === "verified"));
    const structure = await verify(await digested(false));
    assert.ok(structure.sound);
    const states = new Map(structure.sections.map(({ kind, state }) => [kind, state]));
    assert.deepEqual([states.get("config"), states.get("images")], ["verified", "structure"]);
  });

  test("every changed byte of content or header is found", async () => {
    const bytes = await digested(true);
    const end = bytes.indexOf("shale.json") - 1;
    let found = 0;
    for (let at = 40; at < end; at += 6151) {
      const changed = Buffer.from(bytes);
      changed[at]! ^= 0x20;
      try {
        if (!(await verify(changed)).sound) found++;
        else assert.fail(`byte ${at} was changed, and nothing noticed`);
      } catch (error) {
        if (!ShaleError.is(error)) throw error;
        found++;
      }
    }
    assert.ok(found > 50);
  });

  test("sections that are missing or were added, and what stands behind the index", async () => {
    const bytes = await digested(true);
    const added = tarOf([{ path: "bind.mounts", content: "[]" }]).subarray(0, 1024);
    const found = await verify(Buffer.concat([added, bytes]));
    assert.ok(!found.sound);
    assert.ok(found.sections.some(({ kind, problem }) => kind === "mounts" && problem === "was added"));
    const behind = Buffer.concat([bytes.subarray(0, -1024), tarOf([{ path: "late", content: "x" }])]);
    assert.ok((await verify(behind)).problems.some((problem) => problem.includes("behind shale.json")));
  });

  test("memory that is not what the pagemaps say, and images that don't decode", async () => {
    const run = { address: 0x1000, pages: 4 };
    const process = { pid: 1, ppid: 0, comm: "x", runs: [run] };
    const short = await verify(podmanArchive({ processes: [{ ...process, memory: pages(3) }] }));
    assert.match(short.problems.join(), /pages-1\.img has 12288 bytes; process 1 has 16384/);
    const pagemap = { path: "checkpoint/pagemap-9.img", content: encodePagemap(9, [run]) };
    const broken = { path: "checkpoint/pstree.img", content: "nonsense" };
    const found = await verify(tarOf([pagemap, broken, { path: "config.dump", content: "{" }]));
    assert.equal(found.problems.length, 2);
    assert.ok(!found.sound);
  });

  for (const [name, bytes] of [
    ["cut", podmanArchive().subarray(0, 100_000)],
    ["cut in its compression", gzipSync(podmanArchive()).subarray(0, 50_000)],
    [
      "with a nested tar that is cut",
      tarOf([
        { path: "rootfs-diff.tar", content: tarOf([{ path: "a", content: "x".repeat(2000) }]).subarray(0, 1024) },
      ]),
    ],
    [
      "with a layer that is cut",
      tarOf([{ path: "rootfs-diff.tar", content: gzipSync(podmanArchive()).subarray(0, 5000) }]),
    ],
  ] as const) {
    test(`an archive that is ${name} is a FormatError`, async () => {
      await assert.rejects(verify(bytes), (error) => ShaleError.is(error, "INVALID_ARGUMENT"));
    });
  }
});
