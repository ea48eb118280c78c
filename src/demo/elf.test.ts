import assert from "node:assert/strict";
import { readFileSync, realpathSync } from "node:fs";
import { test } from "node:test";
import fc from "fast-check";
import { memorySource } from "../bytes/index.ts";
import { FormatError } from "../errors/index.ts";
import { readElfDependencies } from "./elf.ts";

interface Shape {
  readonly wide: boolean;
  readonly little: boolean;
}

/** A small ELF object: header, PT_INTERP, PT_LOAD and PT_DYNAMIC; strings are loaded 0x1000 above their file offset. */
function elf({ wide, little }: Shape): Buffer {
  const file = Buffer.alloc(1024);
  const view = new DataView(file.buffer, file.byteOffset);
  const word = (at: number, value: number) =>
    wide ? view.setBigUint64(at, BigInt(value), little) : view.setUint32(at, value, little);
  file.set([0x7f, 0x45, 0x4c, 0x46, wide ? 2 : 1, little ? 1 : 2, 1]);
  const size = wide ? 56 : 32;
  word(wide ? 32 : 28, 64); // e_phoff
  view.setUint16(wide ? 54 : 42, size, little); // e_phentsize
  view.setUint16(wide ? 56 : 44, 3, little); // e_phnum
  const strings = "\0libfirst.so.1\0libsecond.so\0$ORIGIN/../lib:/opt/lib\0";
  file.write("/lib/ld.so.1\0", 400, "latin1");
  file.write(strings, 512, "latin1");
  const segment = (i: number, type: number, offset: number, length: number) => {
    const at = 64 + i * size;
    view.setUint32(at, type, little);
    word(at + (wide ? 8 : 4), offset);
    word(at + (wide ? 16 : 8), offset + 0x1000);
    word(at + (wide ? 32 : 16), length);
  };
  const step = wide ? 16 : 8;
  segment(0, 3, 400, 13);
  segment(1, 1, 0, 1024);
  segment(2, 2, 700, step * 7);
  const dynamic = [
    [1, 1],
    [30, 8], // DT_FLAGS: of no interest
    [1, 15],
    [29, 28],
    [5, 512 + 0x1000],
    [10, strings.length],
    [0, 0],
  ] as const;
  for (const [i, [tag, value]] of dynamic.entries()) {
    word(700 + i * step, tag);
    word(700 + i * step + step / 2, value);
  }
  return file;
}

const shapes: readonly Shape[] = [true, false].flatMap((wide) => [true, false].map((little) => ({ wide, little })));

for (const shape of shapes) {
  test(`readElfDependencies() reads ${shape.wide ? 64 : 32} bit, ${shape.little ? "little" : "big"} endian`, () => {
    assert.deepEqual(readElfDependencies(memorySource(elf(shape))), {
      interpreter: "/lib/ld.so.1",
      needed: ["libfirst.so.1", "libsecond.so"],
      searchPath: ["$ORIGIN/../lib", "/opt/lib"],
    });
  });
}

test("readElfDependencies() finds the interpreter and the C library of this host's sh", () => {
  const found = readElfDependencies(memorySource(readFileSync(realpathSync("/bin/sh"))));
  assert.ok(found?.interpreter?.startsWith("/lib"), String(found?.interpreter));
  assert.ok(found?.needed.some((name) => name.startsWith("libc.")));
});

test("readElfDependencies() takes nothing for ELF that is not", () => {
  for (const text of ["", "#!/", "#!/bin/sh\n", "\x7fEL"]) {
    assert.equal(readElfDependencies(memorySource(Buffer.from(text, "latin1"))), undefined);
  }
});

const good = elf({ wide: true, little: true });
function damaged(change: (view: DataView) => void): Buffer {
  const copy = Buffer.alloc(good.length, good);
  change(new DataView(copy.buffer, copy.byteOffset));
  return copy;
}
for (const [name, bytes, text] of [
  ["a header that is cut off", good.subarray(0, 20), /header at byte 0: ends after/],
  ["a class of 3", damaged((v) => v.setUint8(4, 3)), /class: must be 1 or 2/],
  ["a byte order of 0", damaged((v) => v.setUint8(5, 0)), /byte order/],
  ["program headers outside", damaged((v) => v.setBigUint64(32, 1n << 40n, true)), /program header/],
  ["an offset over 2^53", damaged((v) => v.setBigUint64(32, 1n << 60n, true)), /over 2\^53/],
  ["too many program headers", damaged((v) => v.setUint16(56, 5000, true)), /5000 is over/],
  ["too small program headers", damaged((v) => v.setUint16(54, 8, true)), /at least 56/],
  ["a huge interpreter", damaged((v) => v.setBigUint64(64 + 32, 5000n, true)), /interpreter: is over/],
  ["a string table outside", damaged((v) => v.setBigUint64(700 + 4 * 16 + 8, 1n, true)), /outside of the loaded/],
  ["a huge string table", damaged((v) => v.setBigUint64(700 + 5 * 16 + 8, 1n << 32n, true)), /string table/],
  ["a name outside of the strings", damaged((v) => v.setBigUint64(700 + 8, 999n, true)), /no string at 999/],
] as const) {
  test(`readElfDependencies() refuses ${name}`, () => {
    assert.throws(
      () => readElfDependencies(memorySource(bytes)),
      (error) => error instanceof FormatError && text.test(error.message),
    );
  });
}

test("readElfDependencies() returns or throws FormatError, whatever the damage", () => {
  const damage = fc.array(fc.tuple(fc.nat(900), fc.nat(255)), { minLength: 1, maxLength: 12 });
  fc.assert(
    fc.property(fc.constantFrom(...shapes), damage, fc.nat(1024), (shape, changes, length) => {
      const bytes = elf(shape);
      for (const [at, value] of changes) bytes[at] = value;
      try {
        readElfDependencies(memorySource(bytes.subarray(0, length)));
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
      }
    }),
    { numRuns: 500 },
  );
});
