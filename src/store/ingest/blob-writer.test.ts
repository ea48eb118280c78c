import assert from "node:assert/strict";
import { hash } from "node:crypto";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  decodePayloadFooter,
  decodePayloads,
  PAYLOAD_ALIGNMENT,
  PayloadTable,
} from "../../formats/payload-table/index.ts";
import { fileSource } from "../../sys/index.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { noise } from "../testing/fixtures.ts";
import { BlobWriter } from "./blob-writer.ts";

/** What is done with one payload: its parts (numbers are runs of zeros), and whether it is kept. */
interface Operation {
  readonly parts: readonly (Buffer | number)[];
  readonly keep: boolean;
}

const bytesOf = ({ parts }: Operation) =>
  Buffer.concat(parts.map((part) => (typeof part === "number" ? Buffer.alloc(part) : part)));

/** Does it with the writer; compares the file with what a list of buffers would hold. Returns bytes on disk. */
async function run(operations: readonly Operation[]): Promise<number> {
  return withTemporaryDirectory((directory) => {
    const path = join(directory, "blob");
    const writer = new BlobWriter(path);
    const table = new PayloadTable();
    const kept: { offset: number; bytes: Buffer }[] = [];
    for (const operation of operations) {
      for (const part of operation.parts) {
        if (typeof part === "number") writer.appendZeros(part);
        else writer.append(part);
      }
      if (!operation.keep) {
        writer.takeBack();
        continue;
      }
      const bytes = bytesOf(operation);
      const offset = writer.keep();
      assert.equal(offset % PAYLOAD_ALIGNMENT, 0);
      assert.equal(writer.position % PAYLOAD_ALIGNMENT, 0);
      if (bytes.length === 0) continue;
      table.add(offset, bytes.length, hash("sha256", bytes, "buffer"));
      kept.push({ offset, bytes });
    }
    const size = writer.finish(table);
    writer.sync();
    writer.close();
    if (kept.length === 0) {
      assert.equal(size, 0);
      return existsSync(path) ? statSync(path).blocks * 512 : 0;
    }
    const expected = Buffer.alloc(size);
    for (const { offset, bytes } of kept) expected.set(bytes, offset);
    const found = readFileSync(path);
    assert.ok(found.subarray(0, size).equals(expected), "payload area");
    using source = fileSource(path);
    assert.equal(decodePayloadFooter(source).tableOffset, size);
    assert.deepEqual(
      [...decodePayloads(source)].map(({ offset, length }) => [offset, length]),
      kept.map(({ offset, bytes }) => [offset, bytes.length]),
    );
    return statSync(path).blocks * 512;
  });
}

const MiB = 1 << 20;
const one = (...parts: readonly (Buffer | number)[]): Operation => ({ parts, keep: true });
const none = (...parts: readonly (Buffer | number)[]): Operation => ({ parts, keep: false });

describe("BlobWriter", () => {
  const cases: readonly {
    readonly name: string;
    readonly operations: readonly Operation[];
    /** Bytes on disk at most: payloads that are no holes, and the table. */
    readonly atMost: number;
  }[] = [
    {
      name: "pads each payload to 4096",
      operations: [one(noise(1, 1)), one(noise(4096, 2)), one(noise(4097, 3))],
      atMost: 24_000,
    },
    {
      name: "joins payloads larger than its buffer",
      operations: [one(noise(9 * MiB + 5, 1)), one(noise(10, 2))],
      atMost: 10 * MiB,
    },
    {
      name: "leaves out runs of zeros that the tar has",
      operations: [one(Buffer.alloc(8 * MiB), noise(10, 1))],
      atMost: 16_384,
    },
    {
      name: "leaves out zeros that a sparse map has",
      operations: [one(noise(5, 1), 64 * MiB, noise(5, 2))],
      atMost: 24_000,
    },
    { name: "writes a payload of zeros only as a hole", operations: [one(3 * MiB), one(noise(10, 1))], atMost: 16_384 },
    { name: "ends with a hole", operations: [one(noise(10, 1)), one(3 * MiB + 7)], atMost: 16_384 },
    { name: "keeps short runs of zeros", operations: [one(noise(4096, 1), 8192, noise(4096, 2))], atMost: 24_000 },
    {
      name: "takes back what it still holds",
      operations: [one(noise(10, 1)), none(noise(9000, 2)), one(noise(20, 3))],
      atMost: 16_384,
    },
    {
      name: "takes back what it has written, so that a later hole shows zeros",
      operations: [one(noise(10, 1)), none(noise(9 * MiB, 2)), one(9 * MiB, noise(3, 3))],
      atMost: 24_000,
    },
    {
      name: "takes back holes",
      operations: [one(noise(10, 1)), none(noise(10, 2), 9 * MiB), one(noise(9, 3))],
      atMost: 16_384,
    },
    { name: "makes nothing of nothing", operations: [], atMost: 0 },
    { name: "makes nothing of what was all taken back", operations: [none(noise(5 * MiB, 1))], atMost: 0 },
  ];
  for (const { name, operations, atMost } of cases) {
    test(name, async () => {
      const allocated = await run(operations);
      assert.ok(allocated <= atMost, `${allocated} bytes on disk`);
    });
  }

  test("writes what a list of buffers would hold, whatever is appended, kept and taken back", async () => {
    const size = fc.oneof(
      { weight: 4, arbitrary: fc.integer({ min: 0, max: 9000 }) },
      { weight: 1, arbitrary: fc.constantFrom(4095, 4096, 65_535, 65_536, 65_537, 4 * MiB - 1, 4 * MiB, 4 * MiB + 1) },
    );
    const part = fc.oneof(
      fc.tuple(size, fc.nat(1000)).map(([length, seed]) => noise(length, seed)),
      size.map((length) => Buffer.alloc(length)),
      size,
    );
    const operation = fc.record({ parts: fc.array(part, { maxLength: 4 }), keep: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(fc.array(operation, { maxLength: 6 }), async (operations) => {
        await run(operations);
      }),
      { numRuns: 40, seed: 1 },
    );
  });
});
