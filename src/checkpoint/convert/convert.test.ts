import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { gunzipSync, gzipSync, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import type { TarEntry } from "../../formats/tar/index.ts";
import { isNested, openArchive } from "../archive/index.ts";
import { surveyArchive } from "../show/index.ts";
import {
  containerdArchive,
  crioArchive,
  inlineArchive,
  podmanArchive,
  type SampleFile,
  type SampleOptions,
  tarOf,
} from "../testing/sample-archives.ts";
import { type ConvertOptions, type ConvertResult, convertCheckpoint, type ConvertTarget } from "./index.ts";
import { loadArchive } from "./load.ts";

const directory = mkdtempSync(join(tmpdir(), "shale-convert-"));
after(() => rmSync(directory, { recursive: true, force: true }));
let files = 0;

const SAMPLES = {
  podman: podmanArchive,
  crio: crioArchive,
  containerd: containerdArchive,
  inline: inlineArchive,
} as const satisfies Record<ConvertTarget, (options?: SampleOptions) => Buffer>;
const TARGETS = Object.keys(SAMPLES) as ConvertTarget[];

function write(bytes: Uint8Array): string {
  const path = join(directory, `${files++}.tar`);
  writeFileSync(path, bytes);
  return path;
}

async function convert(
  bytes: Uint8Array,
  to: ConvertTarget,
  options: Partial<ConvertOptions> = {},
): Promise<{ readonly path: string; readonly result: ConvertResult }> {
  const path = join(directory, `${files++}.tar`);
  const result = await convertCheckpoint(write(bytes), to, { output: path, writer: "test", ...options });
  return { path, result };
}

const attributes = ({ type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, linkTarget, size }: TarEntry) => {
  return [type, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, linkTarget, size];
};

/** What an archive says, in one form for all dialects. */
async function meaning(path: string): Promise<unknown> {
  await using opened = new AsyncDisposableStack();
  const { changes, documents } = await loadArchive(path, opened, { spoolDirectory: directory });
  const entries: unknown[] = [];
  if (changes?.source !== undefined) {
    for await (const { header, content } of changes.source.entries()) {
      const bytes = Buffer.alloc(content === undefined ? 0 : header.size);
      if (content !== undefined && !(content instanceof Uint8Array)) {
        const { readAt } = await import("../../sys/index.ts");
        using file = content.open();
        readAt(file.fd, bytes, file.offset);
      }
      entries.push([header.path, ...attributes(header as TarEntry), bytes.toString("latin1")]);
    }
  }
  const spec = documents.get("spec.dump");
  return { entries, deleted: changes?.deleted, opaque: changes?.opaque, spec: spec && Buffer.from(spec).toString() };
}

/** Members that every dialect has, with their content. */
async function images(path: string): Promise<Record<string, string>> {
  await using archive = await openArchive(path);
  const found: Record<string, string> = {};
  for await (const { path: name, section, entry, content } of archive.members()) {
    if (section.kind !== "images" || entry.type !== "file") continue;
    found[name] = Buffer.from(await content.bytes(1 << 24)).toString("latin1");
  }
  return found;
}

describe("convertCheckpoint()", () => {
  for (const from of TARGETS) {
    for (const to of TARGETS) {
      test(`${from} to ${to}: changes, deletions, metadata and memory keep their meaning`, async () => {
        const bytes = SAMPLES[from]();
        const input = write(bytes);
        const { path, result } = await convert(bytes, to);
        assert.deepEqual([result.from, result.to], [from, to]);
        assert.deepEqual(await meaning(path), await meaning(input));
        assert.deepEqual(await images(path), await images(input));
        assert.equal(statSync(path).mode & 0o777, 0o600);
        await using archive = await openArchive(path);
        const survey = await surveyArchive(archive);
        assert.equal(survey.dialect, to);
        assert.equal(survey.container.name, "counter");
        execFileSync("tar", ["-tf", path], { stdio: "pipe" });
      });
    }
  }

  test("there and back is the same tar of changes", async () => {
    const bytes = podmanArchive();
    const there = await convert(bytes, "containerd");
    const back = await convert(readFileSync(there.path), "podman");
    assert.deepEqual(await meaning(back.path), await meaning(write(bytes)));
  });

  for (const [name, compress] of [
    ["gzip", gzipSync],
    ["zstd", zstdCompressSync],
  ] as const) {
    test(`takes a ${name} archive, and writes one`, async () => {
      const bytes = podmanArchive();
      const { path } = await convert(compress(bytes), "containerd", { compression: name });
      await using archive = await openArchive(path);
      assert.equal(archive.compression, name);
      assert.deepEqual(await meaning(path), await meaning(write(bytes)));
    });
  }

  test("containerd's layer has its whiteouts before its files", async () => {
    const rootfs: SampleFile[] = [{ path: "etc/new", content: "x" }];
    const { path } = await convert(podmanArchive({ rootfs, deleted: ["/etc/old", "/gone"] }), "containerd");
    await using archive = await openArchive(path);
    for await (const member of archive.members()) {
      if (!isNested(member.section.kind) || member.section.kind !== "rootfs") continue;
      const layer = join(directory, "layer.tar");
      writeFileSync(layer, gunzipSync(await member.content.bytes(1 << 24)));
      const listed = execFileSync("tar", ["-tf", layer], { encoding: "utf8" }).trim().split("\n");
      assert.deepEqual(listed, ["etc/.wh.old", ".wh.gone", "etc/new"]);
      return;
    }
    assert.fail("no rootfs-diff.tar");
  });

  test("a directory that was removed and made again hides the image's, and keeps its files", async () => {
    const rootfs: SampleFile[] = [
      { path: "srv/d/" },
      { path: "srv/d/new", content: "x" },
      { path: "opt/e/f", content: "y" },
    ];
    const podman = podmanArchive({ rootfs, deleted: ["/srv/d", "/opt/e", "/etc/x"] });
    const { path, result } = await convert(podman, "containerd");
    assert.deepEqual([result.deleted, result.opaque], [1, 2]);
    assert.ok(result.notices.some((notice) => notice.includes("both changed and deleted")));
    const back = await convert(readFileSync(path), "podman");
    assert.ok(back.result.notices.some((notice) => notice.includes("hide those of the image")));
    // shale's index keeps what podman's format can't say
    const again = await convert(readFileSync(back.path), "containerd");
    assert.deepEqual(await meaning(again.path), await meaning(path));
  });

  test("a file in the place of another is no deletion", async () => {
    const layer = gzipSync(tarOf([{ path: "a/.wh.f" }, { path: "a/f", content: "new" }]));
    const bytes = tarOf([
      { path: "checkpoint/inventory.img", content: "x" },
      { path: "rootfs-diff.tar", content: layer },
      { path: "status.dump", content: "{}" },
    ]);
    const { path, result } = await convert(bytes, "podman");
    assert.equal(result.deleted, 0);
    assert.ok(!execFileSync("tar", ["-tf", path], { encoding: "utf8" }).includes("deleted.files"));
  });

  test("hard links of inline archives lead into their tar, and back", async () => {
    const link = { type: "hardlink", linkTarget: "data/log.txt" } as const;
    const rootfs: SampleFile[] = [
      { path: "data/log.txt", content: "x" },
      { path: "data/second", header: link },
    ];
    const inline = await convert(podmanArchive({ rootfs }), "inline");
    const out = join(directory, "inline");
    execFileSync("mkdir", [out]);
    execFileSync("tar", ["-C", out, "-xf", inline.path]);
    assert.equal(statSync(join(out, "rootfs-diff/data/second")).nlink, 2);
    const back = await convert(readFileSync(inline.path), "podman");
    assert.deepEqual(await meaning(back.path), await meaning(write(podmanArchive({ rootfs }))));
  });

  test("says what the other engine does not use, and refuses it with strict", async () => {
    const { result } = await convert(podmanArchive(), "crio");
    for (const part of ["a volume is kept", "network.status is kept", "bind mounts must be there"]) {
      assert.ok(
        result.notices.some((notice) => notice.includes(part)),
        part,
      );
    }
    const output = join(directory, "strict.tar");
    const strict = convertCheckpoint(write(podmanArchive()), "crio", { output, writer: "test", strict: true });
    await assert.rejects(strict, { code: "FAILED_PRECONDITION" });
    assert.ok(!existsSync(output));
    const { result: back } = await convert(crioArchive(), "podman");
    assert.ok(back.notices.some((notice) => notice.includes("config.dump is not podman's")));
    assert.ok(back.notices.some((notice) => notice.includes("bind.mounts is left out")));
  });

  test("config.dump of podman gets the keys that CRI-O and containerd read, and keeps its own", async () => {
    const { path } = await convert(podmanArchive(), "crio");
    const text = execFileSync("tar", ["-xOf", path, "config.dump"], { encoding: "utf8" });
    const config = JSON.parse(text) as Record<string, string>;
    assert.equal(config.rootfsImageRef, "ab12".repeat(16));
    assert.equal(config.rootfsImage, "docker.io/library/httpd:2.4");
    assert.equal(config.rootfsImageID, "ab12".repeat(16));
  });

  test("refuses hostile names, and leaves nothing behind", async () => {
    const base = [{ path: "checkpoint/inventory.img", content: "x" }];
    const cases: readonly SampleFile[][] = [
      [...base, { path: "rootfs-diff.tar", content: tarOf([{ path: "../escape", content: "x" }]) }],
      [...base, { path: "rootfs-diff.tar", content: tarOf([{ path: "/etc/passwd", content: "x" }]) }],
      [...base, { path: "deleted.files", content: '["/../x"]' }],
      [...base, { path: "deleted.files", content: '["/"]' }],
      [...base, { path: "deleted.files", content: "{" }],
      [...base, { path: "rootfs-diff/x", header: { type: "hardlink", linkTarget: "config.dump" } }],
      [...base, { path: "rootfs-diff/x", header: { type: "hardlink", linkTarget: "rootfs-diff/../../y" } }],
      [
        ...base,
        { path: "status" },
        { path: "rootfs-diff.tar", content: gzipSync(tarOf([{ path: "a/.wh...", content: "" }])) },
      ],
      [{ path: "../x", content: "y" }],
    ];
    for (const [i, entries] of cases.entries()) {
      const output = join(directory, `hostile${i}`);
      const converting = convertCheckpoint(write(tarOf(entries)), "containerd", { output, writer: "test" });
      await assert.rejects(converting, (error) => ShaleError.is(error), `case ${i}`);
      assert.ok(!existsSync(output), `case ${i}`);
    }
    assert.deepEqual(
      readdirSync(directory).filter((name) => name.includes("spool") || name.endsWith(".new")),
      [],
    );
  });
});

test("fuzz: a mutated archive converts or is a ShaleError, and leaves no spool", async () => {
  const samples = [podmanArchive(), containerdArchive(), inlineArchive(), gzipSync(crioArchive())];
  const mutation = fc.record({ at: fc.nat(1 << 20), byte: fc.nat(255) });
  await fc.assert(
    fc.asyncProperty(
      fc.nat(3),
      fc.constantFrom(...TARGETS),
      fc.array(mutation, { minLength: 1, maxLength: 6 }),
      fc.boolean(),
      async (which, to, mutations, early) => {
        const bytes = Buffer.from(samples[which]!);
        for (const { at, byte } of mutations) bytes[at % (early ? 16_384 : bytes.length)] = byte;
        const output = join(directory, "fuzzed.tar");
        try {
          await convertCheckpoint(write(bytes), to, { output, writer: "test" });
        } catch (error) {
          assert.ok(ShaleError.is(error), String(error));
        }
        rmSync(output, { force: true });
      },
    ),
    { numRuns: 150 },
  );
  assert.deepEqual(
    readdirSync(directory).filter((name) => name.includes("spool")),
    [],
  );
});
