import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import { podmanArchive, tarOf } from "../../checkpoint/testing/sample-archives.ts";
import { FormatError } from "../../errors/index.ts";
import { encodePagemap } from "../../formats/criu/testing/images.ts";
import { TarDecoder, type TarEntry, type TarSink } from "../../formats/tar/index.ts";
import { ArchiveSplitter, MEMORY_CHUNK } from "./archive-splitter.ts";

/** What a layer writer would get: all bytes in order, and the sizes of the files. */
class Recorder implements TarSink {
  readonly parts: Uint8Array[] = [];
  readonly files: { readonly entry: TarEntry; received: number; ended: boolean }[] = [];
  raw(bytes: Uint8Array): void {
    this.parts.push(Uint8Array.from(bytes));
  }
  entry(entry: TarEntry): void {
    assert.ok(this.files.at(-1)?.ended ?? true, "a file begins within another");
    this.files.push({ entry, received: 0, ended: false });
  }
  payload(bytes: Uint8Array): void {
    const file = this.files.at(-1)!;
    assert.ok(!file.ended);
    file.received += bytes.length;
    this.parts.push(Uint8Array.from(bytes));
  }
  endEntry(): void {
    this.files.at(-1)!.ended = true;
  }
}

function split(archive: Uint8Array, cuts: readonly number[] = []): Recorder {
  const recorder = new Recorder();
  const decoder = new TarDecoder(new ArchiveSplitter(recorder));
  let at = 0;
  for (const cut of [...cuts].sort((a, b) => a - b).concat(archive.length)) {
    decoder.write(archive.subarray(at, cut));
    at = cut;
  }
  decoder.end();
  assert.ok(Buffer.concat(recorder.parts).equals(archive), "bytes are lost or out of order");
  for (const { entry, received, ended } of recorder.files) {
    assert.ok(ended);
    assert.equal(received, entry.segments?.reduce((sum, { length }) => sum + length, 0) ?? entry.size);
  }
  assert.equal(new Set(recorder.files.map((file) => file.entry.path)).size, recorder.files.length);
  return recorder;
}

const sizes = (recorder: Recorder) => recorder.files.map((file) => file.entry.size);
const BASE = 0x5555_0000_0000;

describe("ArchiveSplitter", () => {
  test("gives every byte once and in order, however the archive is cut", () => {
    const archive = podmanArchive();
    const whole = sizes(split(archive));
    assert.ok(whole.length > 20);
    fc.assert(
      fc.property(fc.array(fc.nat(archive.length), { maxLength: 40 }), (cuts) => {
        assert.deepEqual(sizes(split(archive, cuts)), whole);
      }),
      { numRuns: 50 },
    );
  });

  test("cuts memory at multiples of 64 KiB of its addresses", () => {
    const runs = [
      { address: BASE + 0xe000, pages: 4 },
      { address: BASE + 0x40000, pages: 1, flags: 1 },
      { address: BASE + 0x100000, pages: 33 },
    ];
    const archive = tarOf([
      { path: "checkpoint/pagemap-1.img", content: encodePagemap(9, runs) },
      { path: "checkpoint/pages-9.img", content: Buffer.alloc(37 * 4096, "m") },
    ]);
    assert.deepEqual(sizes(split(archive)).slice(1), [0x2000, 0x2000, MEMORY_CHUNK, MEMORY_CHUNK, 0x1000]);
  });

  test("cuts memory whose pagemap is missing, damaged or about another size into plain 64 KiB", () => {
    const memory = { path: "checkpoint/pages-1.img", content: Buffer.alloc(MEMORY_CHUNK + 4096, "m") };
    for (const pagemap of [
      [],
      [{ path: "checkpoint/pagemap-1.img", content: "not a pagemap" }],
      [{ path: "checkpoint/pagemap-1.img", content: encodePagemap(1, [{ address: BASE, pages: 1 }]) }],
    ]) {
      assert.deepEqual(sizes(split(tarOf([...pagemap, memory]))).slice(pagemap.length), [MEMORY_CHUNK, 4096]);
    }
  });

  test("gives the files of a tar in the archive one by one, and a file that is none as it is", () => {
    const inner = tarOf([
      { path: "a", content: "x".repeat(5000) },
      { path: "b/" },
      { path: "b/.wh.c" },
      { path: "../d", content: "y".repeat(10) },
    ]);
    const archive = tarOf([
      { path: "rootfs-diff.tar", content: inner },
      { path: "other", content: Buffer.alloc(3000, "z") },
      { path: "empty.tar", content: Buffer.alloc(1024) },
    ]);
    assert.deepEqual(sizes(split(archive)), [5000, 10, 3000, 1024]);
  });

  test("refuses an archive with a tar that is cut off", () => {
    const inner = tarOf([{ path: "a", content: "x".repeat(5000) }]).subarray(0, 2048);
    assert.throws(() => split(tarOf([{ path: "rootfs-diff.tar", content: inner }])), FormatError);
  });
});

test("fuzz: a mutated archive passes byte for byte, or is a FormatError", () => {
  const archive = podmanArchive();
  const mutation = fc.record({ at: fc.nat(archive.length - 1), byte: fc.nat(255) });
  const cuts = fc.array(fc.nat(archive.length), { maxLength: 5 });
  fc.assert(
    fc.property(fc.array(mutation, { minLength: 1, maxLength: 6 }), cuts, fc.boolean(), (mutations, at, early) => {
      const bytes = Buffer.from(archive);
      // half of them among the first members, where pagemaps and headers stand close
      for (const { at: place, byte } of mutations) bytes[early ? place % 32_768 : place] = byte;
      try {
        split(bytes, at);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }),
    { numRuns: 400 },
  );
});
