import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import fc from "fast-check";
import { encodeTarHeader, TAR_END, type TarHeader, tarHeaderLength, tarPadding } from "./index.ts";
import { decodeTar, entryBytes, header, tarOf } from "./testing.ts";

const PLAIN: readonly { readonly name: string; readonly fields: Partial<TarHeader> & { path: string } }[] = [
  { name: "a name of 100 bytes", fields: { path: "n".repeat(100) } },
  { name: "prefix 155 and name 100", fields: { path: `${"p".repeat(155)}/${"n".repeat(100)}` } },
  { name: "a directory", fields: { path: "d", type: "directory" } },
  { name: "the largest octal values", fields: { path: "f", uid: 0o7777777, gid: 0o7777777, size: 0o77777777777 } },
  { name: "the largest octal mtime", fields: { path: "f", mtimeSeconds: 0o77777777777 } },
  { name: "a device", fields: { path: "f", type: "block", rdevMajor: 4095, rdevMinor: 1048575 } },
  { name: "bytes that are not UTF-8", fields: { path: "\xff" } },
];
for (const { name, fields } of PLAIN) {
  test(`encodeTarHeader() needs one block for ${name}`, () => {
    assert.equal(encodeTarHeader(header(fields)).length, 512);
  });
}

const EXTENDED: readonly {
  readonly name: string;
  readonly fields: Partial<TarHeader> & { path: string };
  readonly body: string;
}[] = [
  { name: "a name of 101 bytes", fields: { path: "n".repeat(101) }, body: `111 path=${"n".repeat(101)}\n` },
  { name: "8 GiB", fields: { path: "f", size: 2 ** 33 }, body: "19 size=8589934592\n" },
  { name: "nanoseconds", fields: { path: "f", mtimeSeconds: 1, mtimeNanoseconds: 500 }, body: "19 mtime=1.0000005\n" },
  {
    name: "a time before the epoch",
    fields: { path: "f", mtimeSeconds: -2, mtimeNanoseconds: 5e8 },
    body: "14 mtime=-1.5\n",
  },
  {
    name: "a name that is not UTF-8",
    fields: { path: "\xff".repeat(101) },
    body: `21 hdrcharset=BINARY\n111 path=${"\xff".repeat(101)}\n`,
  },
  {
    name: "xattrs, by name",
    fields: {
      path: "f",
      xattrs: [
        { name: "user.b=", value: "\0" },
        { name: "user.a", value: "1" },
      ],
    },
    body: "35 LIBARCHIVE.xattr.user.b%3D=AA==\n25 SCHILY.xattr.user.a=1\n",
  },
];
for (const { name, fields, body } of EXTENDED) {
  test(`encodeTarHeader() writes just the PAX records for ${name}`, () => {
    const bytes = Buffer.from(encodeTarHeader(header(fields)));
    const end = bytes.indexOf(0, 512);
    assert.equal(bytes.toString("latin1", 512, end), body);
  });
}

test("encodeTarHeader() refuses what no tar can say", () => {
  const bad: (Partial<TarHeader> & { path: string })[] = [
    { path: "" },
    { path: "a\0" },
    { path: "a/" },
    { path: "a", uid: -1 },
    { path: "a", mode: 0o10000 },
    { path: "a", mtimeNanoseconds: 1e9 },
    { path: "a", size: 2 ** 53 },
  ];
  for (const fields of bad) assert.throws(() => encodeTarHeader(header(fields)), RangeError);
});

test("tarPadding() fills up to 512, also beyond 2^32; TAR_END is 1024 zeros", () => {
  const sizes = [0, 1, 511, 512, 513, 2 ** 32 + 1];
  assert.deepEqual(
    sizes.map((size) => tarPadding(size).length),
    [0, 511, 1, 0, 511, 511],
  );
  assert.deepEqual(Buffer.from(TAR_END), Buffer.alloc(1024));
});

const text = (min: number, max: number) =>
  fc
    .array(fc.integer({ min: 1, max: 255 }), { minLength: min, maxLength: max })
    .map((codes) => String.fromCharCode(...codes));
const number = (max: number) => fc.oneof(fc.nat({ max: 9 }), fc.integer({ min: 0, max }), fc.constant(max));
const anyHeader: fc.Arbitrary<TarHeader> = fc
  .record({
    type: fc.constantFrom("file", "directory", "symlink", "hardlink", "character", "block", "fifo"),
    path: text(1, 300).filter((path) => path.replaceAll("/", "") !== ""),
    linkTarget: text(1, 300),
    mode: number(0o7777),
    uid: number(2 ** 32),
    gid: number(2 ** 32),
    size: number(400),
    mtimeSeconds: fc.oneof(
      fc.integer(),
      fc.maxSafeInteger().filter((n) => Math.abs(n) < 2 ** 52),
    ),
    mtimeNanoseconds: number(999_999_999),
    rdevMajor: number(2 ** 31 - 1),
    rdevMinor: number(2 ** 31 - 1),
    xattrs: fc.uniqueArray(
      fc.record({ name: text(1, 40), value: fc.string({ unit: "binary-ascii", maxLength: 40 }) }),
      {
        selector: ({ name }) => name,
        maxLength: 3,
      },
    ),
  })
  .map((one) => ({
    ...one,
    path: one.type === "directory" ? `${one.path.replace(/\/+$/, "")}/` : one.path.replace(/\/+$/, ""),
    linkTarget: one.type === "symlink" || one.type === "hardlink" ? one.linkTarget : "",
    size: one.type === "file" ? one.size : 0,
    rdevMajor: one.type === "character" || one.type === "block" ? one.rdevMajor : 0,
    rdevMinor: one.type === "character" || one.type === "block" ? one.rdevMinor : 0,
  }));

test("encodeTarHeader() and TarDecoder give any entries back, however the tar is cut", () => {
  fc.assert(
    fc.property(
      fc.array(anyHeader, { maxLength: 5 }),
      fc.infiniteStream(fc.integer({ min: 1, max: 1500 })),
      (list, cuts) => {
        const tar = tarOf(...list.map((one) => entryBytes(one, "p".repeat(one.size))));
        const chunks: Buffer[] = [];
        for (let at = 0; at < tar.length; ) {
          const length = cuts.next().value;
          chunks.push(tar.subarray(at, at + length));
          at += length;
        }
        const { entries, all } = decodeTar(chunks);
        assert.ok(all.equals(tar));
        const byName = (a: { name: string }, b: { name: string }) => (a.name < b.name ? -1 : 1);
        const plain = ({
          type,
          path,
          linkTarget,
          mode,
          uid,
          gid,
          size,
          mtimeSeconds,
          mtimeNanoseconds,
          rdevMajor,
          rdevMinor,
          xattrs,
        }: TarHeader) => ({
          ...{ type, path, linkTarget, mode, uid, gid, size, mtimeSeconds, mtimeNanoseconds, rdevMajor, rdevMinor },
          xattrs: xattrs.map(({ name, value }) => ({ name, value })).sort(byName),
        });
        assert.deepEqual(entries.map(plain), list.map(plain));
      },
    ),
    { numRuns: 150 },
  );
});

test("encodeTarHeader() is read by GNU tar as it was meant", () => {
  const tar = tarOf(
    entryBytes(
      { path: `${"d/".repeat(120)}file`, mode: 0o4755, uid: 3000000, gid: 7, mtimeSeconds: 1600000000 },
      "hello",
    ),
    entryBytes({ path: "link", type: "symlink", linkTarget: "t".repeat(150), mtimeNanoseconds: 5 }),
  );
  const listing = execFileSync("tar", ["--utc", "--numeric-owner", "-tvf", "-"], { input: tar, encoding: "latin1" });
  const lines = listing.trim().split("\n");
  assert.match(lines[0]!, /^-rwsr-xr-x 3000000\/7 +5 2020-09-13 12:26 (d\/){120}file$/);
  assert.match(lines[1]!, /^lrw-r--r-- 0\/0 +0 1970-01-01 00:00 link -> t{150}$/);
});

test("encodeTarHeader() puts content at a multiple of the alignment, and says the same", () => {
  const multiples = fc.integer({ min: 0, max: 300 }).map((n) => n * 512);
  const alignments = fc.constantFrom(512, 4096, 16384, 65536, 131072);
  const names = fc.integer({ min: 1, max: 200 }).map((n) => "n".repeat(n));
  fc.assert(
    fc.property(
      names,
      fc.integer({ min: 0, max: 999_999_999 }),
      multiples,
      alignments,
      (path, ns, offset, alignment) => {
        const entry = header({ path, mtimeSeconds: 1, mtimeNanoseconds: ns });
        const bytes = encodeTarHeader(entry, { offset, alignment });
        assert.equal((offset + bytes.length) % alignment, 0);
        assert.ok(bytes.length <= encodeTarHeader(entry).length + alignment + 512);
        assert.deepEqual(decodeTar([bytes]).entries, decodeTar([encodeTarHeader(entry)]).entries);
      },
    ),
  );
});

test("tarHeaderLength() is the length of what encodeTarHeader() gives, anywhere", () => {
  const multiples = fc.integer({ min: 0, max: 300 }).map((n) => n * 512);
  const places = fc.option(fc.record({ offset: multiples, alignment: fc.constantFrom(512, 4096, 16384, 131072) }));
  fc.assert(
    fc.property(anyHeader, places, (entry, place) => {
      const bytes = encodeTarHeader(entry, place ?? undefined);
      assert.equal(tarHeaderLength(entry, place ?? undefined), bytes.length);
    }),
    { numRuns: 500 },
  );
});
