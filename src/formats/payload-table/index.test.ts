import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import { concatBytes, memorySource } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";
import { decodePayloadFooter, decodePayloads, findPayload, PayloadTable } from "./index.ts";

const digest = (n: number) => createHash("sha256").update(String(n)).digest();

function blob(count: number): Uint8Array {
  const table = new PayloadTable();
  for (let i = 0; i < count; i++) table.add(i * 8192, 4097 + (i % 4000), digest(i));
  return concatBytes([new Uint8Array(count * 8192), ...table.encode(count * 8192)]);
}

test("PayloadTable finds 10,000 payloads by digest and length", () => {
  const table = new PayloadTable();
  for (let i = 0; i < 10_000; i++) table.add(i * 4096, i + 1, digest(i));
  for (let i = 0; i < 10_000; i += 7) assert.equal(table.find(digest(i), i + 1), i * 4096);
  assert.equal(table.find(digest(3), 5), -1);
  assert.equal(table.find(digest(10_000), 1), -1);
});

for (const count of [0, 1, 3, 300]) {
  test(`decodePayloads() gives back ${count} payloads`, () => {
    const source = memorySource(blob(count));
    const payloads = [...decodePayloads(source)];
    assert.equal(payloads.length, count);
    assert.deepEqual(decodePayloadFooter(source), { count, tableOffset: count * 8192 });
    for (const [i, payload] of payloads.entries()) {
      assert.deepEqual([payload.offset, payload.length], [i * 8192, 4097 + (i % 4000)]);
      assert.deepEqual(Buffer.from(payload.digest), digest(i));
    }
  });
}

test("decodePayloads() refuses a table in which any byte was changed or that was cut", () => {
  const good = blob(3);
  const start = 3 * 8192;
  for (let at = start; at < good.length; at++) {
    const bad = good.slice();
    bad[at]! ^= 0x10;
    assert.throws(() => [...decodePayloads(memorySource(bad))], FormatError, `byte ${at}`);
  }
  for (let size = 0; size < good.length; size += 97) {
    assert.throws(() => [...decodePayloads(memorySource(good.subarray(0, size)))], FormatError, `size ${size}`);
  }
});

test("findPayload() finds each offset of 300 payloads, and nothing between them", () => {
  const source = memorySource(blob(300));
  for (let i = 0; i < 300; i++) assert.deepEqual(Buffer.from(findPayload(source, i * 8192)!.digest), digest(i));
  assert.equal(findPayload(source, 4096), undefined);
  assert.equal(findPayload(source, 300 * 8192), undefined);
});
