import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, ShaleError } from "../../errors/index.ts";
import { TAR_END, TarDecoder, type TarEntry, type TarLimits } from "./index.ts";
import {
  type BlockFields,
  block,
  decodeTar,
  entryBytes,
  GNU_MAGIC,
  meta,
  padded,
  records,
  tarOf,
  withChecksum,
} from "./testing.ts";

const EMPTY_FILE = block({ name: "f" });

/** Offset, number of 12-byte octal fields. */
function octal12(...values: readonly number[]): string {
  return values.map((value) => `${value.toString(8).padStart(11, "0")}\0`).join("");
}

/** Extension block of an old GNU sparse header. */
function extension(more: boolean, ...values: readonly number[]): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.write(octal12(...values), 0, "latin1");
  if (more) bytes[504] = 1;
  return bytes;
}

function oldSparse(realSize: number, stored: number, more: boolean, ...values: readonly number[]): Buffer {
  const at: Record<number, string> = { 386: octal12(...values), 483: octal12(realSize) };
  if (more) at[482] = "\x01";
  return block({ name: "s", type: "S", magic: GNU_MAGIC, size: stored, at });
}

const MEANINGS: readonly {
  readonly name: string;
  readonly tar: readonly Uint8Array[];
  readonly want: readonly (Partial<TarEntry> & { readonly payload?: string })[];
}[] = [
  { name: "nothing in an empty stream", tar: [], want: [] },
  { name: "nothing between two zero blocks", tar: [TAR_END], want: [] },
  { name: "the end of the stream at a header as the end", tar: [EMPTY_FILE], want: [{ path: "f" }] },
  { name: "one zero block at the end as the end", tar: [EMPTY_FILE, Buffer.alloc(512)], want: [{ path: "f" }] },
  { name: "zeros of any length after the end", tar: [EMPTY_FILE, TAR_END, Buffer.alloc(777)], want: [{ path: "f" }] },
  {
    name: "type NUL as a file",
    tar: [block({ type: "\0", magic: "", size: 1 }), padded("x")],
    want: [{ type: "file", size: 1, payload: "x" }],
  },
  {
    name: "type 7 (contiguous) as a file",
    tar: [block({ type: "7", size: 1 }), padded("x")],
    want: [{ type: "file", payload: "x" }],
  },
  {
    name: "an old file with a slash at its end as a directory",
    tar: [block({ name: "d/", type: "\0", magic: "" }), block({ name: "e/" })],
    want: [
      { type: "directory", path: "d/" },
      { type: "directory", path: "e/" },
    ],
  },
  {
    name: "sizes of links, directories and special files as meaning nothing",
    tar: [
      block({ name: "h", type: "1", size: 5000, linkName: "t" }),
      block({ name: "s", type: "2", size: 5000, linkName: "t" }),
      block({ name: "c", type: "3", size: 5000 }),
      block({ name: "b", type: "4", size: 5000 }),
      block({ name: "d", type: "5", size: 5000 }),
      block({ name: "p", type: "6", size: 5000 }),
    ],
    want: [
      { type: "hardlink", size: 0, linkTarget: "t" },
      { type: "symlink", size: 0, linkTarget: "t" },
      { type: "character", size: 0 },
      { type: "block", size: 0 },
      { type: "directory", size: 0 },
      { type: "fifo", size: 0 },
    ],
  },
  { name: "the ustar prefix", tar: [block({ at: { 345: "a/b" } })], want: [{ path: "a/b/name" }] },
  {
    name: "no prefix in v7 and GNU, where other things are",
    tar: [block({ magic: "", at: { 345: "a/b" } }), block({ magic: GNU_MAGIC, at: { 345: octal12(1, 2) } })],
    want: [{ path: "name" }, { path: "name" }],
  },
  {
    name: "a shorter prefix in star",
    tar: [block({ at: { 345: "p".repeat(131), 476: octal12(1, 2), 508: "tar\0" } })],
    want: [{ path: `${"p".repeat(131)}/name` }],
  },
  {
    name: "device numbers but not in v7",
    tar: [
      block({ type: "3", at: { 329: "0000010\0", 337: "0000017\0" } }),
      block({ type: "3", magic: "", at: { 329: "0000010\0", 337: "0000017\0" } }),
    ],
    want: [
      { rdevMajor: 8, rdevMinor: 15 },
      { rdevMajor: 0, rdevMinor: 0 },
    ],
  },
  {
    name: "octal numbers with leading spaces, early ends and empty fields",
    tar: [block({ at: { 100: "   644 \0", 108: "\0\0\0\0\0\0\0\0", 116: "17\0junk!" } })],
    want: [{ mode: 0o644, uid: 0, gid: 15 }],
  },
  {
    name: "octal numbers without an end",
    tar: [block({ at: { 108: "77777777" } })],
    want: [{ uid: 0o77777777 }],
  },
  {
    name: "base-256 numbers, a negative mtime too",
    tar: [
      block({ at: { 108: "\x80\0\0\0\xff\xff\xff\xfe", 136: `${"\xff".repeat(11)}\xfe` } }),
      block({ at: { 136: "\x80\0\0\0\0\0\0\x02\0\0\0\x05" } }),
    ],
    want: [{ uid: 4294967294, mtimeSeconds: -2 }, { mtimeSeconds: 8589934597 }],
  },
  {
    name: "file type bits in the mode as nothing",
    tar: [block({ at: { 100: "0104755\0" } })],
    want: [{ mode: 0o4755 }],
  },
  {
    name: "GNU long names and long link names",
    tar: [meta("L", `${"a/".repeat(100)}x\0`), meta("K", `${"b".repeat(200)}\0`), block({ type: "2" })],
    want: [{ path: `${"a/".repeat(100)}x`, linkTarget: "b".repeat(200), headerOffset: 0 }],
  },
  {
    name: "the offset of the first header, and a long name for one entry only",
    tar: [EMPTY_FILE, meta("L", "long\0"), EMPTY_FILE, EMPTY_FILE],
    want: [
      { headerOffset: 0, path: "f" },
      { headerOffset: 512, path: "long" },
      { headerOffset: 2048, path: "f" },
    ],
  },
  {
    name: "PAX records, Solaris's X too",
    tar: [
      meta(
        "X",
        records(["path", "p\n=\xff"], ["uid", "3000000000"], ["gid", "7"], ["mtime", "1.5"], ["comment", "no"]),
      ),
      EMPTY_FILE,
    ],
    want: [{ path: "p\n=\xff", uid: 3000000000, gid: 7, mtimeSeconds: 1, mtimeNanoseconds: 500_000_000 }],
  },
  {
    name: "a PAX size over the header's",
    tar: [meta("x", records(["size", "3"])), block({ size: 0 }), padded("abc")],
    want: [{ size: 3, payload: "abc" }],
  },
  {
    name: "an empty PAX value as taking the record back",
    tar: [meta("x", records(["path", "a"], ["path", ""], ["size", ""])), block({ name: "f", size: 1 }), padded("x")],
    want: [{ path: "f", payload: "x" }],
  },
  {
    name: "PAX times before the epoch and with too many digits",
    tar: ["-1.5", "-3", "0.1234567891", "-0.25", "4294967296.", "-0.0000000001"].flatMap((mtime) => [
      meta("x", records(["mtime", mtime])),
      EMPTY_FILE,
    ]),
    want: [
      { mtimeSeconds: -2, mtimeNanoseconds: 500_000_000 },
      { mtimeSeconds: -3, mtimeNanoseconds: 0 },
      { mtimeSeconds: 0, mtimeNanoseconds: 123_456_789 },
      { mtimeSeconds: -1, mtimeNanoseconds: 750_000_000 },
      { mtimeSeconds: 4294967296, mtimeNanoseconds: 0 },
      { mtimeSeconds: 0, mtimeNanoseconds: 0 },
    ],
  },
  {
    name: "xattrs in both forms, the last value of a name counting",
    tar: [
      meta(
        "x",
        records(
          ["SCHILY.xattr.user.a", "1\0=\n"],
          ["LIBARCHIVE.xattr.user.b%3Dc", "AP8"],
          ["SCHILY.xattr.user.empty", ""],
          ["LIBARCHIVE.xattr.user.a", "Mg=="],
        ),
      ),
      EMPTY_FILE,
    ],
    want: [
      {
        xattrs: [
          { name: "user.a", value: "2" },
          { name: "user.b=c", value: "\0\xff" },
          { name: "user.empty", value: "" },
        ],
      },
    ],
  },
  {
    name: "records that lose something by name, others not",
    tar: [meta("x", records(["SCHILY.acl.access", "user::rw-"], ["atime", "1"], ["uname", "me"])), EMPTY_FILE],
    want: [{ ignoredRecords: ["SCHILY.acl.access"] }],
  },
  {
    name: "a global header for the entries after it, below their own records",
    tar: [
      EMPTY_FILE,
      meta("g", records(["mtime", "9.5"], ["gid", "4"], ["comment", "c"])),
      EMPTY_FILE,
      meta("x", records(["gid", "5"])),
      EMPTY_FILE,
      meta("g", records(["mtime", ""])),
      EMPTY_FILE,
    ],
    want: [
      { mtimeSeconds: 0, gid: 0o644 },
      { mtimeSeconds: 9, mtimeNanoseconds: 500_000_000, gid: 4 },
      { mtimeSeconds: 9, gid: 5 },
      { mtimeSeconds: 0, gid: 4 },
    ],
  },
  {
    name: "SCHILY device numbers",
    tar: [meta("x", records(["SCHILY.devmajor", "300"], ["SCHILY.devminor", "70000"])), block({ type: "4" })],
    want: [{ rdevMajor: 300, rdevMinor: 70000 }],
  },
  {
    name: "old GNU sparse with extension blocks",
    tar: [oldSparse(100, 5, true, 0, 1, 10, 1, 20, 1, 30, 1), extension(false, 40, 1, 100, 0), padded("abcde")],
    want: [
      {
        size: 100,
        payload: "abcde",
        segments: [0, 10, 20, 30, 40].map((offset) => ({ offset, length: 1 })),
      },
    ],
  },
  {
    name: "a sparse file without holes as dense, and one without data",
    tar: [oldSparse(3, 3, false, 0, 3), padded("abc"), oldSparse(9, 0, false, 9, 0)],
    want: [
      { size: 3, segments: undefined, payload: "abc" },
      { size: 9, segments: [], payload: "" },
    ],
  },
  {
    name: "PAX sparse 0.0, 0.1 and 1.0",
    tar: [
      meta(
        "x",
        records(
          ["GNU.sparse.size", "9"],
          ["GNU.sparse.numblocks", "2"],
          ["GNU.sparse.offset", "0"],
          ["GNU.sparse.numbytes", "1"],
          ["GNU.sparse.offset", "8"],
          ["GNU.sparse.numbytes", "1"],
        ),
      ),
      block({ size: 2 }),
      padded("ab"),
      meta("x", records(["GNU.sparse.size", "9"], ["GNU.sparse.name", "real"], ["GNU.sparse.map", "0,1,8,1"])),
      block({ name: "GNUSparseFile.0/real", size: 2 }),
      padded("ab"),
      meta(
        "x",
        records(
          ["GNU.sparse.major", "1"],
          ["GNU.sparse.minor", "0"],
          ["GNU.sparse.name", "real"],
          ["GNU.sparse.realsize", "9"],
        ),
      ),
      block({ size: 514 }),
      padded("2\n0\n1\n8\n1\n"),
      padded("ab"),
    ],
    want: ["name", "real", "real"].map((path) => ({
      path,
      size: 9,
      payload: "ab",
      segments: [
        { offset: 0, length: 1 },
        { offset: 8, length: 1 },
      ],
    })),
  },
  {
    name: "GNU D as a directory whose list is raw",
    tar: [block({ name: "d/", type: "D", magic: GNU_MAGIC, size: 4 }), padded("Yx\0\0"), EMPTY_FILE],
    want: [{ type: "directory", path: "d/", payload: "" }, { path: "f" }],
  },
  {
    name: "GNU V as no entry",
    tar: [block({ name: "label", type: "V", magic: GNU_MAGIC }), EMPTY_FILE],
    want: [{ path: "f", headerOffset: 512 }],
  },
];

for (const { name, tar, want } of MEANINGS) {
  test(`TarDecoder takes ${name}`, () => {
    const bytes = Buffer.concat(tar);
    const { entries, all } = decodeTar([bytes]);
    assert.ok(all.equals(bytes));
    assert.equal(entries.length, want.length);
    for (const [i, { payload, ...fields }] of want.entries()) {
      const entry = entries[i]!;
      for (const [key, value] of Object.entries(fields)) assert.deepEqual(entry[key as keyof TarEntry], value, key);
      if (payload !== undefined) assert.equal(entry.payload.toString("latin1"), payload);
    }
  });
}

for (const [name, end] of [
  ["none", "hi\n"],
  ["a part", "hi\n\0"],
] as const) {
  test(`TarDecoder with mayLackPadding takes a last file with ${name} of its padding, as Go does`, () => {
    const bytes = Buffer.concat([EMPTY_FILE, block({ size: 3 }), Buffer.from(end)]);
    const { entries, all } = decodeTar([bytes], { mayLackPadding: true });
    assert.ok(all.equals(bytes));
    assert.deepEqual(
      entries.map(({ payload }) => payload.toString()),
      ["", "hi\n"],
    );
    const cut = bytes.subarray(0, bytes.length - end.length + 2);
    assert.throws(() => decodeTar([cut], { mayLackPadding: true }), { code: "INVALID_ARGUMENT" });
  });
}

test("TarDecoder accepts a checksum of signed bytes", () => {
  const bytes = block({ name: "\xff\xfe" });
  const unsigned = Number.parseInt(bytes.toString("latin1", 148, 154), 8);
  bytes.write(`${(unsigned - 512).toString(8).padStart(6, "0")}\0 `, 148, "latin1");
  assert.equal(decodeTar([bytes]).entries[0]!.path, "\xff\xfe");
});

const sparse1 = records(["GNU.sparse.major", "1"], ["GNU.sparse.minor", "0"], ["GNU.sparse.realsize", "9"]);
const withSize = (text: string): Buffer => block({ at: { 124: text } });

const REFUSED: readonly {
  readonly name: string;
  readonly tar: readonly Uint8Array[];
  readonly error: RegExp;
  readonly offset: number;
  readonly limits?: Partial<TarLimits>;
  readonly code?: string;
}[] = [
  {
    name: "a wrong checksum, naming the entry before",
    tar: [EMPTY_FILE, Buffer.from(EMPTY_FILE).fill(1, 400, 401)],
    error: /header at byte 512: checksum does not match; the entry before is "f"/,
    offset: 512,
  },
  { name: "text", tar: [padded("this is not a tar")], error: /checksum/, offset: 0 },
  { name: "a header that is cut off", tar: [EMPTY_FILE.subarray(0, 511)], error: /header .*is cut off/, offset: 511 },
  {
    name: "content that is cut off",
    tar: [block({ size: 9 }), Buffer.from("x")],
    error: /content of "name"/,
    offset: 513,
  },
  { name: "padding that is cut off", tar: [block({ size: 1 }), Buffer.from("x")], error: /padding/, offset: 513 },
  {
    name: "padding of an extended header that is cut off",
    tar: [meta("x", records(["a", "b"])).subarray(0, 600)],
    error: /padding/,
    offset: 600,
  },
  {
    name: "an extended header that is cut off",
    tar: [meta("x", records(["a", "b"])).subarray(0, 514)],
    error: /extended/,
    offset: 514,
  },
  {
    name: "an extended header at the end of the stream",
    tar: [meta("x", records(["a", "b"]))],
    error: /before its entry/,
    offset: 0,
  },
  {
    name: "an extended header at the end of the archive",
    tar: [tarOf(meta("L", "x"))],
    error: /before its entry/,
    offset: 0,
  },
  {
    name: "data after one zero block",
    tar: [Buffer.alloc(512), EMPTY_FILE],
    error: /one zero block, then more data/,
    offset: 512,
  },
  {
    name: "garbage after the end",
    tar: [EMPTY_FILE, TAR_END, Buffer.alloc(700), Buffer.from("x")],
    error: /followed by bytes that are not zero/,
    offset: 2236,
  },
  {
    name: "an unknown type",
    tar: [block({ type: "Z" })],
    error: /type flag of "name" at byte 0: Z is not known/,
    offset: 0,
  },
  { name: "a type that can't be printed", tar: [block({ type: "\xff" })], error: /byte 255 is not known/, offset: 0 },
  { name: "a continued file of GNU multivolume", tar: [block({ type: "M" })], error: /another volume/, offset: 0 },
  { name: "a socket by its mode", tar: [block({ at: { 100: "0140755\0" } })], error: /socket/, offset: 0 },
  { name: "a socket by its type", tar: [EMPTY_FILE, block({ type: "s" })], error: /socket/, offset: 512 },
  { name: "an empty name", tar: [block({ name: "" })], error: /name at byte 0: is empty/, offset: 0 },
  {
    name: "an empty link target",
    tar: [block({ type: "2" })],
    error: /link name of "name" at byte 0: is empty/,
    offset: 0,
  },
  {
    name: "a file with data and a slash at its end",
    tar: [block({ name: "d/", size: 1 })],
    error: /ends in a slash/,
    offset: 0,
  },
  {
    name: "digits that are not octal",
    tar: [withSize("0000000009\0 ")],
    error: /size of "name".*neither octal/,
    offset: 0,
  },
  { name: "numbers with a gap", tar: [withSize("12 34567890 ")], error: /neither octal/, offset: 0 },
  { name: "a negative size", tar: [withSize("\xff".repeat(12))], error: /-1 is negative/, offset: 0 },
  { name: "a size over 2^53", tar: [withSize(`\x80\0\0\0${"\xff".repeat(8)}`)], error: /below 2\^53/, offset: 0 },
  { name: "a negative owner", tar: [block({ at: { 108: "\xff".repeat(8) } })], error: /uid .*negative/, offset: 0 },
  {
    name: "a size over the limit",
    tar: [withSize("\x80\0\0\0\0\0\x10\0\0\0\0\x01")],
    error: /17592186044417 is more than 17592186044416/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "a PAX size over the limit",
    tar: [meta("x", records(["size", "11"])), EMPTY_FILE],
    limits: { fileSize: 10 },
    error: /size of "f"/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "an extended header over the limit before its body comes",
    tar: [block({ type: "x", size: 1024 * 1024 + 1 })],
    error: /has 1048577 bytes/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "a GNU long name over the limit",
    tar: [meta("L", "x".repeat(4097))],
    error: /long name .*more than 4096/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "a PAX path over the limit",
    tar: [meta("x", records(["path", "x".repeat(4097)]))],
    error: /more than 4096/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "an xattr over the limit",
    tar: [meta("x", records(["SCHILY.xattr.user.a", "x".repeat(65536)]))],
    error: /xattr user.a .*more than 65535/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "an xattr name over the limit",
    tar: [meta("x", records([`SCHILY.xattr.user.${"a".repeat(251)}`, ""]))],
    error: /xattr name/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  { name: "an xattr without a name", tar: [meta("x", records(["SCHILY.xattr.", ""]))], error: /xattr name/, offset: 0 },
  { name: "base64 that is none", tar: [meta("x", records(["LIBARCHIVE.xattr.a", "!"]))], error: /base64/, offset: 0 },
  {
    name: "percent signs without digits",
    tar: [meta("x", records(["LIBARCHIVE.xattr.%4", ""]))],
    error: /percent/,
    offset: 0,
  },
  { name: "a PAX path with NUL", tar: [meta("x", records(["path", "a\0b"]))], error: /NUL/, offset: 0 },
  ...[
    "5 a=b\n",
    "7 a=b\n",
    "99 a=b\n",
    "-6 a=b\n",
    " a=b\n",
    "x a=b\n",
    "6 a=bc",
    "6a=b\n\n",
    "0006",
    "4 a\n",
    "5 =b\n",
    "99999999999 a=b\n",
  ].map((body) => ({
    name: `the PAX record ${JSON.stringify(body)}`,
    tar: [meta("x", body), EMPTY_FILE],
    error: /has no (valid length|key)/,
    offset: 0,
  })),
  ...["1e3", "-1", "9007199254740993", "1 "].map((value) => ({
    name: `the PAX size ${JSON.stringify(value)}`,
    tar: [meta("x", records(["size", value])), EMPTY_FILE],
    error: /record size .*number below 2\^53/,
    offset: 0,
  })),
  ...["x", "1.5x", "--1", ".5", "99999999999999999"].map((value) => ({
    name: `the PAX mtime ${JSON.stringify(value)}`,
    tar: [meta("x", records(["mtime", value])), EMPTY_FILE],
    error: /mtime .*not a time/,
    offset: 0,
  })),
  ...["path", "size", "SCHILY.xattr.user.a", "GNU.sparse.map"].map((key) => ({
    name: `${key} in a global header`,
    tar: [meta("g", records([key, "1"])), EMPTY_FILE],
    error: /would change every file/,
    offset: 0,
  })),
  {
    name: "two PAX headers for one entry",
    tar: [meta("x", records(["a", "b"])), meta("x", "")],
    error: /a second one/,
    offset: 1024,
  },
  { name: "two long names for one entry", tar: [meta("L", "a"), meta("L", "b")], error: /a second one/, offset: 1024 },
  {
    name: "a long name that differs from the PAX path",
    tar: [meta("L", "a"), meta("x", records(["path", "b"])), EMPTY_FILE],
    error: /differs/,
    offset: 0,
  },
  { name: "star's sparse files", tar: [block({ type: "S" })], error: /star/, offset: 0 },
  {
    name: "star's real size",
    tar: [meta("x", records(["SCHILY.realsize", "5"])), EMPTY_FILE],
    error: /star/,
    offset: 0,
  },
  { name: "overlapping segments", tar: [oldSparse(9, 4, false, 0, 2, 1, 2)], error: /begins before byte 2/, offset: 0 },
  { name: "segments that go backwards", tar: [oldSparse(9, 2, false, 5, 1, 0, 1)], error: /begins before/, offset: 0 },
  { name: "segments beyond the file", tar: [oldSparse(9, 2, false, 8, 2)], error: /ends after byte 9/, offset: 0 },
  {
    name: "less stored than segments",
    tar: [oldSparse(9, 1, false, 0, 2)],
    error: /describes 2 bytes, but 1/,
    offset: 0,
  },
  {
    name: "more stored than segments",
    tar: [oldSparse(9, 3, false, 0, 2)],
    error: /describes 2 bytes, but 3/,
    offset: 0,
  },
  { name: "a map that ends before its extension", tar: [oldSparse(9, 1, true, 0, 1)], error: /extension/, offset: 0 },
  {
    name: "an extension that is cut off",
    tar: [oldSparse(9, 4, true, 0, 1, 2, 1, 4, 1, 6, 1)],
    error: /sparse map .*cut off/,
    offset: 512,
  },
  {
    name: "too many segments",
    tar: [oldSparse(9, 4, false, 0, 1, 2, 1, 4, 1, 6, 1)],
    limits: { sparseSegments: 3 },
    error: /more than 3 segments/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "a sparse size over the limit",
    tar: [oldSparse(2 ** 32, 0, false)],
    limits: { fileSize: 2 ** 31 },
    error: /4294967296 is more than/,
    offset: 0,
    code: "RESOURCE_EXHAUSTED",
  },
  {
    name: "a sparse directory",
    tar: [meta("x", sparse1), block({ type: "5" })],
    error: /belongs to a directory/,
    offset: 0,
  },
  {
    name: "an unknown sparse version",
    tar: [meta("x", records(["GNU.sparse.major", "2"], ["GNU.sparse.size", "1"])), EMPTY_FILE],
    error: /2\.0/,
    offset: 0,
  },
  {
    name: "an unknown sparse record",
    tar: [meta("x", records(["GNU.sparse.other", "2"]))],
    error: /not known/,
    offset: 0,
  },
  {
    name: "a sparse map without a size",
    tar: [meta("x", records(["GNU.sparse.map", "0,1"])), EMPTY_FILE],
    error: /without the size/,
    offset: 0,
  },
  {
    name: "an odd sparse map",
    tar: [meta("x", records(["GNU.sparse.size", "9"], ["GNU.sparse.map", "0,1,2"])), EMPTY_FILE],
    error: /without a length/,
    offset: 0,
  },
  {
    name: "sparse offsets in a row",
    tar: [meta("x", records(["GNU.sparse.offset", "0"], ["GNU.sparse.offset", "1"]))],
    error: /out of turn/,
    offset: 0,
  },
  {
    name: "a 1.0 map longer than the data",
    tar: [meta("x", sparse1), block({ size: 512 }), padded("9\n0\n".padEnd(512, "1"))],
    error: /sparse map/,
    offset: 0,
  },
  {
    name: "a 1.0 map that is no list",
    tar: [meta("x", sparse1), block({ size: 512 }), padded("1\n\n")],
    error: /list of numbers/,
    offset: 0,
  },
  {
    name: "a 1.0 map without room",
    tar: [meta("x", sparse1), block({ size: 10 })],
    error: /longer than the stored/,
    offset: 0,
  },
];

for (const { name, tar, error, offset, limits, code } of REFUSED) {
  test(`TarDecoder refuses ${name}`, () => {
    const bytes = Buffer.concat(tar);
    for (const length of [bytes.length, 100]) {
      const chunks: Buffer[] = [];
      for (let at = 0; at < bytes.length; at += length) chunks.push(bytes.subarray(at, at + length));
      assert.throws(
        () => decodeTar(chunks, limits),
        (thrown) => {
          assert.ok(thrown instanceof FormatError);
          assert.match(thrown.message, error);
          assert.equal(thrown.offset, offset);
          assert.equal(thrown.code, code ?? "INVALID_ARGUMENT");
          return true;
        },
      );
    }
  });
}

test("TarDecoder keeps the full path in order and escapes it in messages", () => {
  const name = "a\nb\xff";
  assert.throws(() => decodeTar([block({ name, type: "Z" })]), /"a\\x0ab\\xff"/);
});

test("TarDecoder.write() after a failure or the end is our mistake", () => {
  const ignore = { raw() {}, entry() {}, payload() {}, endEntry() {} };
  const failed = new TarDecoder(ignore);
  assert.throws(() => failed.write(Buffer.alloc(512, 1)), ShaleError);
  assert.throws(() => failed.write(Buffer.alloc(1)), RangeError);
  assert.throws(() => failed.end(), RangeError);
  const ended = new TarDecoder(ignore);
  ended.end();
  assert.throws(() => ended.write(Buffer.alloc(1)), RangeError);
});

test("TarDecoder gives payload as views of its input, headers of small files in one piece", () => {
  const tar = tarOf(entryBytes({ path: "a" }, "one"), entryBytes({ path: "b" }, "two"));
  const calls: string[] = [];
  const decoder = new TarDecoder({
    raw: (bytes) => calls.push(`raw ${bytes.length}`),
    entry: (entry) => calls.push(`entry ${entry.path}`),
    payload(bytes) {
      assert.equal(bytes.buffer, tar.buffer);
      calls.push(`payload ${bytes.length}`);
    },
    endEntry: () => calls.push("end"),
  });
  decoder.write(tar);
  decoder.end();
  const first = ["raw 512", "entry a", "payload 3", "end"];
  assert.deepEqual(calls, [...first, "raw 1021", "entry b", "payload 3", "end", "raw 1533"]);
});

test("TarDecoder counts offsets beyond 2^32", () => {
  const size = 5 * 1024 ** 3;
  const offsets: number[] = [];
  let seen = 0;
  const decoder = new TarDecoder({
    raw() {},
    entry: (entry) => offsets.push(entry.headerOffset),
    payload(bytes) {
      seen += bytes.length;
    },
    endEntry() {},
  });
  const fields: BlockFields = { size };
  decoder.write(block(fields));
  const chunk = new Uint8Array(64 * 1024 * 1024);
  for (let at = 0; at < size; at += chunk.length) decoder.write(chunk);
  decoder.write(EMPTY_FILE);
  decoder.end();
  assert.equal(seen, size);
  assert.deepEqual(offsets, [0, 512 + size]);
});

test("withChecksum() of the test kit agrees with a header made by hand", () => {
  const bytes = Buffer.alloc(512);
  bytes.write("a");
  assert.equal(withChecksum(bytes).toString("latin1", 148, 156), `${(0x61 + 256).toString(8).padStart(6, "0")}\0 `);
});

test("TarDecoder tells what a header says that no layer keeps", () => {
  const gnuTimes = { 345: "00000000005\0", 357: "00000000006\0" };
  const cases: readonly (readonly [string, Uint8Array, TarEntry["unkept"]])[] = [
    ["nothing", block({}), undefined],
    ["a file type in the mode", block({ at: { 100: "0100644\0" } }), { modeField: 0o100644 }],
    ["GNU's times", block({ magic: GNU_MAGIC, at: gnuTimes }), { accessTime: "5", changeTime: "6" }],
    ["a prefix where GNU has its times", block({ at: { 345: "directory" } }), undefined],
    ["times of PAX", Buffer.concat([meta("x", records(["atime", "1.5"])), block({})]), { accessTime: "1.5" }],
    ["a contiguous file", block({ type: "7" }), { differsInGo: "its type flag is 7" }],
    [
      "a directory with a size",
      block({ name: "d/", type: "5", size: 9 }),
      { differsInGo: "it is a directory with a size" },
    ],
    ["a file with a device", block({ at: { 337: "0000003\0" } }), { differsInGo: "it is a file with a device number" }],
    [
      "an xattr of libarchive",
      Buffer.concat([meta("x", records(["LIBARCHIVE.xattr.user.a", "dg=="])), block({})]),
      { differsInGo: "it has a record LIBARCHIVE.xattr.user.a" },
    ],
    [
      "a global time",
      Buffer.concat([meta("g", records(["mtime", "7"])), block({})]),
      { differsInGo: "a global header counts for it" },
    ],
  ];
  for (const [name, bytes, expected] of cases) {
    const { unkept } = decodeTar([tarOf(bytes)]).entries[0]!;
    const told = unkept && Object.fromEntries(Object.entries(unkept).filter(([, value]) => value !== undefined));
    assert.deepEqual(told, expected, name);
  }
});
