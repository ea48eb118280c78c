import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import { encodeProcesses } from "../../formats/criu/testing/images.ts";
import { openArchive, openArchiveStream } from "../archive/index.ts";
import {
  containerdArchive,
  crioArchive,
  inlineArchive,
  PAGE,
  podmanArchive,
  sampleProcesses,
  tarOf,
} from "../testing/sample-archives.ts";
import { type CheckpointSurvey, listArchive, surveyArchive, type SurveyOptions } from "./index.ts";

const directory = mkdtempSync(join(tmpdir(), "shale-show-"));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;

async function survey(bytes: Uint8Array, options: SurveyOptions = {}): Promise<CheckpointSurvey> {
  const path = join(directory, `${files++}.tar`);
  writeFileSync(path, bytes);
  await using archive = await openArchive(path);
  return await surveyArchive(archive, options);
}

const sizesOf = (found: CheckpointSurvey) => found.sections.map(({ kind, members, size }) => [kind, members, size]);

describe("surveyArchive()", () => {
  for (const [dialect, bytes, engine] of [
    ["podman", podmanArchive(), "podman"],
    ["crio", crioArchive(), "cri-o"],
    ["containerd", containerdArchive(), "containerd"],
    ["inline", inlineArchive(), "podman"],
  ] as const) {
    test(`${dialect}: container, engine and processes`, async () => {
      const found = await survey(bytes);
      assert.equal(found.dialect, dialect);
      assert.equal(found.spec.engine, engine);
      assert.equal(found.complete, true);
      assert.equal(found.container.name, "counter");
      assert.equal(found.container.image, "docker.io/library/httpd:2.4");
      assert.equal(found.container.runtime, "crun");
      assert.deepEqual(found.spec.command, ["sh", "-c", "counter"]);
      assert.deepEqual(
        found.tree.processes.map(({ pid, comm, memory, arguments: line, uid }) => [pid, comm, memory, line, uid]),
        [
          [1, "sh", 52 * PAGE, ["sh", "-c", "counter"], 0],
          [7, "sleep", 2 * PAGE, undefined, 1000],
        ],
      );
      assert.equal(found.deleted, dialect === "containerd" ? undefined : 2);
      if (dialect !== "inline") assert.equal(found.statistics?.frozenUs, 51_000);
    });
  }

  test("podman: networks, mounts and the size of each section", async () => {
    const found = await survey(podmanArchive());
    assert.deepEqual({ ...found.networks }, { podman: ["10.88.0.7/16"] });
    assert.equal(found.spec.mounts[1]?.source, "/srv/data");
    const sizes = new Map(found.sections.map((section) => [section.kind, section]));
    assert.equal(sizes.get("volume")?.name, "data");
    assert.ok(sizes.get("images")!.size > 54 * PAGE);
  });

  test("pods of kubelet checkpoints", async () => {
    assert.deepEqual((await survey(crioArchive())).spec.pod, { name: "web", namespace: "shop" });
    assert.deepEqual((await survey(containerdArchive())).spec.pod, { name: "web", namespace: "shop" });
  });

  test("a compressed archive is read up to the first large member, unless in full", async () => {
    const large = Buffer.alloc(3_000_000, "x");
    const bytes = tarOf([
      { path: "config.dump", content: '{"name":"a"}' },
      { path: "spec.dump", content: "{}" },
      { path: "rootfs-diff.tar", content: tarOf([{ path: "large", content: large }]) },
      { path: "deleted.files", content: '["/a"]' },
    ]);
    const compressed = gzipSync(bytes);
    const short = await survey(compressed);
    assert.deepEqual([short.complete, short.container.name, short.deleted], [false, "a", undefined]);
    const full = await survey(compressed, { full: true });
    assert.deepEqual([full.complete, full.deleted], [true, 1]);
    assert.deepEqual(sizesOf(full), sizesOf(await survey(bytes)));
  });

  test("of a plain archive only headers and metadata are read", async () => {
    // 3 TiB of memory that no disk here has: a sparse file, with a tar header before and after
    const { execFileSync } = await import("node:child_process");
    const head = tarOf([
      { path: "config.dump", content: '{"name":"huge"}' },
      { path: "spec.dump", content: "{}" },
    ]).subarray(0, -1024);
    const size = 3 * 2 ** 40;
    const memory = tarOf([{ path: "checkpoint/pages-1.img", header: { size } }]).subarray(0, -1024);
    const tail = tarOf([{ path: "deleted.files", content: "[]" }]);
    const path = join(directory, "huge.tar");
    writeFileSync(path, Buffer.concat([head, memory]));
    execFileSync("truncate", ["-s", `+${size}`, path]);
    writeFileSync(path, tail, { flag: "a" });
    await using archive = await openArchive(path);
    const found = await surveyArchive(archive);
    assert.deepEqual([found.container.name, found.deleted, found.complete], ["huge", 0, true]);
    assert.equal(found.sections.find((section) => section.kind === "images")?.size, size);
  });

  test("processes of a pre-checkpoint", async () => {
    const files = encodeProcesses(sampleProcesses()).map(([name, content]) => ({
      path: `pre-checkpoint/${name}`,
      content,
    }));
    const found = await survey(tarOf(files));
    assert.deepEqual(
      found.tree.processes.map(({ pid, comm }) => [pid, comm]),
      [
        [1, "sh"],
        [7, "sleep"],
      ],
    );
  });

  test("an archive without metadata is shown with what it has", async () => {
    const found = await survey(tarOf([{ path: "checkpoint/inventory.img", content: "" }]).subarray(0, 512 * 3)).catch(
      (error: unknown) => error,
    );
    assert.ok(ShaleError.is(found, "INVALID_ARGUMENT"));
    const plain = await survey(tarOf([{ path: "something", content: "x" }]));
    assert.deepEqual([plain.dialect, plain.container, plain.tree.processes], ["unknown", {}, []]);
  });

  test("fuzz: mutated archives give a survey or a ShaleError", async () => {
    const samples = [podmanArchive(), containerdArchive()];
    const mutation = fc.record({ at: fc.nat(1 << 20), byte: fc.nat(255) });
    await fc.assert(
      fc.asyncProperty(
        fc.nat(1),
        fc.array(mutation, { minLength: 1, maxLength: 8 }),
        fc.nat(1 << 20),
        async (which, list, cut) => {
          const bytes = Buffer.from(samples[which]!);
          // half of the mutations in the headers and small members at the start, where most is decided
          for (const { at, byte } of list) bytes[at % (byte % 2 === 0 ? bytes.length : 16_384)] = byte;
          const source = (async function* () {
            yield cut % 3 === 0 ? bytes.subarray(0, cut % bytes.length) : bytes;
          })();
          try {
            await using archive = await openArchiveStream(source, "mutated");
            await surveyArchive(archive, { full: true });
          } catch (error) {
            assert.ok(ShaleError.is(error), String(error));
          }
        },
      ),
      { numRuns: 150 },
    );
  });
});

describe("listArchive()", () => {
  const list = async (bytes: Uint8Array, nested: boolean) => {
    const path = join(directory, `${files++}.tar`);
    writeFileSync(path, bytes);
    await using archive = await openArchive(path);
    return (await Array.fromAsync(listArchive(archive, { nested }))).map((file) => file.path);
  };

  test("lists members, and the files of nested tars when asked", async () => {
    const plain = await list(podmanArchive(), false);
    assert.ok(plain.includes("checkpoint/pages-1.img") && !plain.includes("rootfs-diff.tar/etc/app.conf"));
    const nested = await list(podmanArchive(), true);
    for (const path of ["rootfs-diff.tar/etc/app.conf", "volumes/data.tar/a", "devshm-checkpoint.tar/segment"]) {
      assert.ok(nested.includes(path), path);
    }
    assert.ok((await list(containerdArchive(), true)).includes("rootfs-diff.tar/etc/.wh.motd"));
  });
});
