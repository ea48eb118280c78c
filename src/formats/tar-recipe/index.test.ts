import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { crc32, zstdCompressSync } from "node:zlib";
import fc from "fast-check";
import { memorySource } from "../../bytes/index.ts";
import { FormatError, ShaleError } from "../../errors/index.ts";
import { FOOTER, HEADER, putVarint, RECORD } from "./format.ts";
import { RecipeReader, RecipeWriter } from "./index.ts";

const FUZZ_RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 200);

type Step =
  | { readonly raw: Uint8Array }
  | {
      readonly inode: number;
      readonly size: number;
      readonly segments?: readonly { readonly offset: number; readonly length: number }[];
    };

/** Byte `offset` of a made-up file. */
function byteOf(nid: number, offset: number): number {
  return (nid * 31 + offset * 7 + (offset >>> 8)) & 0xff;
}

function readFile(nid: number, offset: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => byteOf(nid, offset + i));
}

function nidOf(inode: number): number {
  return inode * 3 + 36;
}

const NIDS = Uint32Array.from({ length: 100 }, (_, inode) => nidOf(inode));

function write(steps: readonly Step[], nids: Uint32Array = NIDS): Buffer {
  const parts: Uint8Array[] = [];
  const writer = new RecipeWriter((bytes) => parts.push(Buffer.from(bytes)));
  for (const step of steps) {
    if ("raw" in step) writer.raw(step.raw);
    else writer.payload(step.inode, step.size, step.segments);
  }
  const { size } = writer.finish(nids);
  const file = Buffer.concat(parts);
  assert.equal(size, file.length);
  return file;
}

function tarOf(steps: readonly Step[]): Buffer {
  const parts = steps.flatMap((step) => {
    if ("raw" in step) return [step.raw];
    const segments = step.segments ?? [{ offset: 0, length: step.size }];
    return segments.map(({ offset, length }) => readFile(nidOf(step.inode), offset, length));
  });
  return Buffer.concat(parts);
}

function rebuild(file: Uint8Array, from = 0): Buffer {
  return Buffer.concat([...new RecipeReader(memorySource(file)).rebuild(readFile, { from })]);
}

const bytes = fc.uint8Array({ maxLength: 700 });
const segments = fc.array(fc.record({ gap: fc.nat(5000), length: fc.nat(3000) }), { maxLength: 6 }).map((list) => {
  let end = 0;
  return list.map(({ gap, length }) => {
    const offset = end + gap;
    end = offset + length;
    return { offset, length };
  });
});
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ raw: bytes }),
  fc.record({ inode: fc.nat(99), size: fc.nat(9000) }),
  fc.record({ inode: fc.nat(99), size: fc.constant(1), segments }),
);
const steps = fc.array(step, { maxLength: 40 });

/** A recipe of several blocks: noise does not compress, so 600 KiB of it are at least three. */
function noise(length: number, seed = 1): Uint8Array {
  let state = seed;
  return Uint8Array.from({ length }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state >>> 24;
  });
}
const SEVERAL_BLOCKS: readonly Step[] = [
  { raw: noise(300_000) },
  { inode: 5, size: 100_000 },
  { raw: noise(300_000, 2) },
  {
    inode: 4,
    size: 1,
    segments: [
      { offset: 4096, length: 100 },
      { offset: 9000, length: 70_000 },
    ],
  },
  { raw: noise(1000, 3) },
];

describe("RecipeWriter and RecipeReader", () => {
  it("rebuild() gives the tar that was told, for any ops", () => {
    fc.assert(
      fc.property(steps, (list) => {
        assert.ok(rebuild(write(list)).equals(tarOf(list)));
      }),
    );
  });

  it("rebuild() from any offset gives the rest of the tar", () => {
    fc.assert(
      fc.property(steps, fc.nat(), (list, at) => {
        const tar = tarOf(list);
        const from = at % (tar.length + 1);
        assert.ok(rebuild(write(list), from).equals(tar.subarray(from)));
      }),
    );
    const file = write(SEVERAL_BLOCKS);
    const tar = tarOf(SEVERAL_BLOCKS);
    for (const from of [0, 1, 262_139, 262_140, 262_141, 299_999, 300_000, 350_000, 700_000, 700_099, tar.length]) {
      assert.ok(rebuild(file, from).equals(tar.subarray(from)), `from ${from}`);
    }
  });

  it("rebuild() from near the end reads one block of ops and one of nids, not the file", () => {
    const file = write(SEVERAL_BLOCKS);
    let read = 0;
    const source = memorySource(file);
    const reader = new RecipeReader({
      size: source.size,
      read: (offset, length) => {
        read += length;
        return source.read(offset, length);
      },
    });
    assert.equal(Buffer.concat([...reader.rebuild(readFile, { from: reader.tarSize - 10 })]).length, 10);
    assert.ok(read < file.length / 2, `${read} of ${file.length} bytes were read`);
  });

  it("rebuild() gives pieces of at most 1 MiB and asks for at most 1 MiB", () => {
    const file = write([{ raw: noise(10) }, { inode: 1, size: 3_500_000 }, { raw: noise(1_200_000) }]);
    const content = Buffer.alloc(1 << 20);
    let size = 0;
    for (const piece of new RecipeReader(memorySource(file)).rebuild((_nid, _offset, length) => {
      assert.ok(length <= 1 << 20);
      return [content.subarray(0, length >> 1), content.subarray(length >> 1, length)];
    })) {
      assert.ok(piece.length <= 1 << 20);
      size += piece.length;
    }
    assert.equal(size, 4_700_010);
  });

  it("payloads() gives nid, size and offset in the tar", () => {
    const list: Step[] = [
      { raw: noise(512) },
      { inode: 7, size: 100 },
      { raw: noise(412) },
      { inode: 9, size: 0 },
      {
        inode: 2,
        size: 99,
        segments: [
          { offset: 4096, length: 10 },
          { offset: 9000, length: 0 },
          { offset: 9001, length: 5 },
        ],
      },
    ];
    assert.deepEqual(
      [...new RecipeReader(memorySource(write(list))).payloads()],
      [
        { nid: nidOf(7), size: 100, tarOffset: 512 },
        {
          nid: nidOf(2),
          size: 15,
          tarOffset: 1024,
          segments: [
            { offset: 4096, length: 10 },
            { offset: 9001, length: 5 },
          ],
        },
      ],
    );
  });

  it("a file of more segments than a block holds is rebuilt", () => {
    const many = Array.from({ length: 50_000 }, (_, i) => ({ offset: i * 8192, length: 1 + (i % 3) }));
    const list: Step[] = [{ raw: noise(512) }, { inode: 3, size: 0, segments: many }, { raw: noise(3) }];
    assert.ok(rebuild(write(list)).equals(tarOf(list)));
  });

  it("an empty tar has an empty recipe", () => {
    const reader = new RecipeReader(memorySource(write([])));
    assert.equal(reader.tarSize, 0);
    assert.deepEqual([...reader.rebuild(readFile)], []);
  });

  it("sizes around 2^31, 2^32 and up to 2^53 - 1 keep their value", () => {
    for (const size of [2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 32 + 1, Number.MAX_SAFE_INTEGER]) {
      const reader = new RecipeReader(memorySource(write([{ inode: 1, size }])));
      assert.equal(reader.tarSize, size);
      assert.deepEqual([...reader.payloads()], [{ nid: nidOf(1), size, tarOffset: 0 }]);
      const tail = Buffer.concat([
        ...reader.rebuild(
          (_nid, offset, length) => {
            assert.equal(offset, size - 5);
            return new Uint8Array(length);
          },
          { from: size - 5 },
        ),
      ]);
      assert.equal(tail.length, 5);
    }
  });

  it("the bytes do not depend on how raw bytes were cut", () => {
    const raw = noise(600_000);
    const whole = write([{ raw }, { inode: 1, size: 5 }]);
    for (const cut of [1, 511, 262_144, 599_999]) {
      const pieces: Step[] = [];
      for (let at = 0; at < 5000 && cut < 512; at += cut)
        pieces.push({ raw: raw.subarray(at, Math.min(at + cut, 5000)) });
      const begin = cut < 512 ? 5000 : cut;
      if (cut >= 512) pieces.push({ raw: raw.subarray(0, cut) });
      assert.ok(write([...pieces, { raw: raw.subarray(begin) }, { inode: 1, size: 5 }]).equals(whole), `cut at ${cut}`);
    }
  });

  it("finish() refuses an inode without a nid, payload() a size that is none", () => {
    assert.throws(() => write([{ inode: 100, size: 1 }]), RangeError);
    assert.throws(() => write([{ inode: 1, size: -1 }]), RangeError);
    assert.throws(
      () =>
        write([
          {
            inode: 1,
            size: 1,
            segments: [
              { offset: 10, length: 5 },
              { offset: 9, length: 5 },
            ],
          },
        ]),
      RangeError,
    );
  });

  it("300,000 entries take at most 40 bytes each, in bounded memory", () => {
    const count = 300_000;
    let size = 0;
    const blocks: Uint8Array[] = [];
    const writer = new RecipeWriter((part) => {
      size += part.length;
      blocks.push(Buffer.from(part));
    });
    const header = Buffer.alloc(512);
    const padding = Buffer.alloc(512);
    const before = process.memoryUsage().arrayBuffers;
    for (let i = 0; i < count; i++) {
      header.fill(0);
      header.write(`usr/lib/node_modules/package-${i % 3000}/lib/file-${i}.js`, 0, "latin1");
      header.write(`0000644 000000 000000 ${((i * 7919) % 65536).toString(8).padStart(11, "0")}`, 100, "latin1");
      header.write(((i * 31) % 4096).toString(8).padStart(6, "0"), 148, "latin1");
      writer.raw(header);
      writer.payload(i, 1 + ((i * 7919) % 65536));
      writer.raw(padding.subarray(0, (512 - ((1 + ((i * 7919) % 65536)) % 512)) % 512));
    }
    const result = writer.finish(Uint32Array.from({ length: count }, (_, i) => 36 + 2 * i));
    assert.ok(size < 40 * count, `${size} bytes`);
    const held = process.memoryUsage().arrayBuffers - before;
    assert.ok(held < size + 32 * 2 ** 20, `${held} bytes in buffers`);
    const reader = new RecipeReader(memorySource(Buffer.concat(blocks)));
    assert.equal(reader.tarSize, result.tarSize);
    assert.equal(reader.payloadCount, count);
    let i = 0;
    for (const { nid } of reader.payloads()) assert.equal(nid, 36 + 2 * i++);
    assert.equal(i, count);
  });
});

describe("RecipeReader on damaged input", () => {
  /** Whatever is read must be right or refused. */
  function readAll(file: Uint8Array): Buffer {
    const reader = new RecipeReader(memorySource(file));
    let size = 0;
    const pieces: Uint8Array[] = [];
    for (const piece of reader.rebuild(readFile)) {
      size += piece.length;
      assert.ok(size < 1 << 24, "more than the recipe can mean");
      pieces.push(piece);
    }
    return Buffer.concat(pieces);
  }

  it("finds any changed byte", () => {
    const list: Step[] = [{ raw: noise(600) }, { inode: 5, size: 1000 }, { raw: noise(24) }, { inode: 6, size: 3 }];
    const file = write(list);
    const tar = tarOf(list);
    for (let at = 0; at < file.length; at++) {
      for (const bit of [0x01, 0x80]) {
        const damaged = Buffer.from(file);
        damaged[at]! ^= bit;
        try {
          // the few bytes that mean nothing (the header's and footer's reserved ones) may change without harm
          assert.ok(readAll(damaged).equals(tar), `byte ${at} changed the tar`);
          assert.ok(at >= 12 && at < HEADER.size, `byte ${at} went unnoticed`);
        } catch (error) {
          assert.ok(error instanceof FormatError, `byte ${at}: ${error}`);
        }
      }
    }
  });

  it("refuses any file that is cut short", () => {
    const file = write([{ raw: noise(600) }, { inode: 5, size: 1000 }]);
    for (let size = 0; size < file.length; size++) {
      assert.throws(() => readAll(file.subarray(0, size)), FormatError, `cut to ${size}`);
    }
  });

  it("returns or throws FormatError for random changes behind sound checksums", () => {
    const raw = [0, 3, 1, 2, 3, 1, 0x90, 0x4e, 2, 2, 5, 6, 7, 8, 0, 1, 9];
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat(raw.length - 1), fc.nat(255)), { maxLength: 4 }),
        fc.array(fc.nat(255), { maxLength: 12 }),
        fc.nat(40_000),
        fc.nat(4),
        (changes, nids, tarSize, payloads) => {
          const ops = [...raw];
          for (const [at, value] of changes) ops[at] = value;
          try {
            readAll(forge({ ops: Uint8Array.from(ops), nids: Uint8Array.from(nids), tarSize, payloads }));
          } catch (error) {
            assert.ok(error instanceof FormatError, String(error));
          }
        },
      ),
      { numRuns: FUZZ_RUNS },
    );
  });

  const sound = { ops: Uint8Array.of(0, 1, 65, 1, 5), nids: Uint8Array.of(72), tarSize: 6, payloads: 1 };
  it("reads the forged file that the cases below are made of", () => {
    assert.equal(readAll(forge(sound)).length, 6);
  });

  const varint = (value: number) => {
    const room = new Uint8Array(8);
    return room.subarray(0, putVarint(room, 0, value));
  };
  const cases: readonly [name: string, change: Partial<Forged>, field: RegExp][] = [
    ["ops for more bytes than the tar has", { ops: Uint8Array.of(0, 1, 65, 1, 6) }, /op/],
    ["ops for fewer bytes than the tar has", { ops: Uint8Array.of(0, 1, 65, 1, 4) }, /block/],
    ["a payload without a nid", { payloads: 0, nids: undefined }, /op/],
    ["a nid without a payload", { payloads: 2, nids: Uint8Array.of(72, 2) }, /block/],
    ["an unknown op", { ops: Uint8Array.of(9) }, /op/],
    ["a literal over the end of its block", { ops: Uint8Array.of(0, 99, 65) }, /literal/],
    ["a segment count over the end of its block", { ops: Uint8Array.of(2, ...varint(2 ** 40)) }, /segment count/],
    ["a varint of nine bytes", { ops: Uint8Array.of(1, ...Array(9).fill(0xff)) }, /varint/],
    ["a negative nid", { nids: Uint8Array.of(1) }, /nid/],
    ["a nid over 2^32", { nids: varint(2 ** 34) }, /nid/],
    ["bytes after the last nid", { nids: Uint8Array.of(72, 0) }, /nid block/],
    ["a raw size that lies", { rawSize: 4 }, /block/],
    ["a raw size over the limit", { rawSize: 2 ** 20 }, /raw size of a block/],
    ["a raw size of zero", { rawSize: 0 }, /raw size of a block/],
    ["a first block that is not at the start", { tarOffset: 1 }, /first block/],
    ["a file offset elsewhere", { fileOffset: 17 }, /file offset of a block/],
    ["a stored checksum that is wrong", { checksum: 1 }, /checksum/],
    ["another version", { version: 2 }, /version/],
  ];
  for (const [name, change, field] of cases) {
    it(`refuses ${name}`, () => {
      assert.throws(
        () => readAll(forge({ ...sound, ...change })),
        (error) => error instanceof FormatError && field.test(error.field),
      );
    });
  }

  it("rebuild() throws DATA_LOSS for a payload that is shorter or longer than it was", () => {
    const reader = new RecipeReader(memorySource(write([{ inode: 5, size: 100 }])));
    for (const length of [99, 101]) {
      assert.throws(
        () => [...reader.rebuild(() => new Uint8Array(length))],
        (error) => ShaleError.is(error, "DATA_LOSS"),
      );
    }
  });
});

interface Forged {
  readonly ops: Uint8Array;
  readonly nids: Uint8Array | undefined;
  readonly tarSize: number;
  readonly payloads: number;
  readonly rawSize?: number;
  readonly tarOffset?: number;
  readonly fileOffset?: number;
  readonly checksum?: number;
  readonly version?: number;
}

/** A recipe of one op block and at most one nid block with sound outer checksums, and whatever else is asked for. */
function forge(values: Forged): Buffer {
  const { version = 1 } = values;
  const header = Buffer.alloc(HEADER.size);
  HEADER.write(header, 0, { magic: "shaletar", version });
  const blocks: Uint8Array[] = [];
  const records: Uint8Array[] = [];
  let fileOffset: number = HEADER.size;
  for (const raw of [values.ops, values.nids]) {
    if (raw === undefined || raw.length === 0) continue;
    const stored = zstdCompressSync(raw);
    const record = Buffer.alloc(RECORD.size);
    const isOps = raw === values.ops;
    RECORD.write(record, 0, {
      tarOffset: BigInt((isOps && values.tarOffset) || 0),
      fileOffset: BigInt((isOps && values.fileOffset) || fileOffset),
      storedSize: stored.length,
      rawSize: (isOps ? values.rawSize : undefined) ?? raw.length,
      checksum: (isOps ? values.checksum : undefined) ?? crc32(stored),
    });
    fileOffset += stored.length;
    blocks.push(stored);
    records.push(record);
  }
  const directory = Buffer.concat(records);
  const footer = Buffer.alloc(FOOTER.size);
  FOOTER.write(footer, 0, {
    magic: "shaletar",
    version,
    tarSize: BigInt(values.tarSize),
    directoryOffset: BigInt(fileOffset),
    opBlocks: 1,
    nidBlocks: records.length - 1,
    payloads: values.payloads,
  });
  FOOTER.write(footer, 0, { checksum: crc32(footer, crc32(directory)) });
  return Buffer.concat([header, ...blocks, directory, footer]);
}
