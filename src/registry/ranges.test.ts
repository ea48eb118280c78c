import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import type { ByteRange } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { parseReference } from "../oci/index.ts";
import { findBoundary, readMultipart } from "./multipart.ts";
import { startDockerRegistry } from "./testing/docker-registry.ts";
import { descriptorOf, referenceTo, someBytes, temporaryDirectory, testClient } from "./testing/fixtures.ts";
import { type AskedRange, byCount, type PartsOptions, parts } from "./testing/parts.ts";
import {
  ok,
  part,
  ranges,
  redirect,
  type Step,
  stallAfter,
  startScriptedServer,
  status,
} from "./testing/scripted-server.ts";

const CONTENT = someBytes(200_000);
const RANGES: readonly ByteRange[] = [
  { offset: 10, end: 20_000 },
  { offset: 30_000, end: 30_001 },
  { offset: 60_000, end: 150_000 },
  { offset: 199_000, end: 200_000 },
];

/** Reads `wanted` from a server with these steps; the requests' Range headers, and the bytes that came, by place. */
async function fetchRanges(steps: readonly Step[], wanted: readonly ByteRange[] = RANGES) {
  await using server = await startScriptedServer();
  await using made = testClient();
  const stored = server.blob("app", CONTENT, undefined, ...steps);
  const reference = referenceTo(server, "app");
  const got = Buffer.alloc(CONTENT.length);
  let bytes = 0;
  let whole = false;
  const onWhole = () => {
    whole = true;
  };
  for await (const piece of made.client.openRanges(reference, descriptorOf(stored), wanted, { onWhole })) {
    got.set(piece.bytes, piece.offset);
    bytes += piece.bytes.length;
  }
  for (const { offset, end } of wanted) assert.ok(got.subarray(offset, end).equals(CONTENT.subarray(offset, end)));
  const asked = server.requests.map((one) => one.headers.range);
  return { asked, bytes, whole, ability: made.client.rangeAbility(reference), client: made.client };
}

const header = (list: readonly ByteRange[]) =>
  `bytes=${list.map(({ offset, end }) => `${offset}-${end - 1}`).join(",")}`;
const ALL = header(RANGES);
const EACH = RANGES.map((one) => header([one]));
const SUM = RANGES.reduce((sum, { offset, end }) => sum + end - offset, 0);

describe("RegistryClient.openRanges()", () => {
  test("asks for several ranges in one request, and for nothing else", async () => {
    const { asked, bytes, ability, whole } = await fetchRanges([parts(CONTENT)]);
    assert.deepEqual(asked, [ALL]);
    assert.equal(bytes, SUM);
    assert.equal(ability, "many");
    assert.equal(whole, false);
  });

  const ANSWERS: readonly { readonly name: string; readonly options: PartsOptions }[] = [
    { name: "in another order", options: { change: (asked) => [...asked].reverse() } },
    { name: "joined", options: { change: (asked) => [[asked[0]![0], asked[2]![1]] as AskedRange, asked[3]!] } },
    {
      name: "wider than asked for",
      options: { change: (asked) => asked.map(([a, b]) => [a - 5, Math.min(b + 5, 199_999)] as const) },
    },
    {
      name: "cut in two",
      options: {
        change: (asked) =>
          asked.flatMap(([a, b]) => (b - a < 2 ? [[a, b] as const] : [[a, a + 1] as const, [a + 2, b] as const])),
      },
    },
    { name: "with a quoted boundary", options: { boundary: '"gc0p4Jq0M2Yt08jU534c0p"' } },
    { name: "with a boundary that needs quotes and has none", options: { boundary: "CloudFront:4D2/9=A" } },
  ];
  for (const { name, options } of ANSWERS) {
    test(`accepts parts ${name}`, async () => {
      assert.deepEqual((await fetchRanges([parts(CONTENT, options)])).asked, [ALL]);
    });
  }

  test("accepts one part over all ranges, without multipart", async () => {
    const { asked, ability } = await fetchRanges([part(CONTENT, 10, 199_999)]);
    assert.deepEqual(asked, [ALL]);
    assert.equal(ability, "unknown");
  });

  test("asks one by one where only the first range is answered", async () => {
    const first = part(CONTENT, 10, 19_999);
    const { asked, ability } = await fetchRanges([byCount(ranges(CONTENT), first)]);
    assert.deepEqual(asked, [ALL, ...EACH.slice(1)]);
    assert.equal(ability, "one");
  });

  for (const code of [400, 414, 416, 431, 501]) {
    test(`asks one by one where several are refused with ${code}`, async () => {
      const { asked, ability } = await fetchRanges([byCount(ranges(CONTENT), status(code))]);
      assert.deepEqual(asked, [ALL, ...EACH]);
      assert.equal(ability, "one");
    });
  }

  test("reads the whole blob where single ranges are refused too", async () => {
    const step: Step = (request, response) =>
      (request.headers.range === undefined ? ok(CONTENT) : status(416))(request, response);
    const { asked, ability, whole } = await fetchRanges([step]);
    assert.deepEqual(asked, [ALL, EACH[0], undefined]);
    assert.equal(ability, "none");
    assert.equal(whole, true);
  });

  test("reads the whole blob once where 200 answers a range, and stops behind the last one", async () => {
    const { asked, whole, bytes } = await fetchRanges([ok(CONTENT)], [{ offset: 5, end: 70_000 }]);
    assert.equal(asked.length, 1);
    assert.equal(whole, true);
    assert.ok(bytes >= 70_000);
  });

  test("asks again, after the time that a 429 names, for what is missing", async () => {
    const { asked } = await fetchRanges([status(429, { "retry-after": "0" }), parts(CONTENT)]);
    assert.deepEqual(asked, [ALL, ALL]);
  });

  test("goes on with what is missing after a reset inside of a part", async () => {
    const { asked, bytes } = await fetchRanges([parts(CONTENT, { breakAfter: 70_000 }), parts(CONTENT)]);
    assert.equal(asked.length, 2);
    assert.match(asked[1] ?? "", /^bytes=\d+-149999,199000-199999$/);
    assert.ok(bytes <= SUM);
  });

  for (const [name, change] of [
    ["shorter", -1],
    ["longer", 1],
  ] as const) {
    test(`refuses a part that is ${name} than it says`, async () => {
      const bytesOf = (first: number, last: number) => CONTENT.subarray(first, last + 1 + change);
      await assert.rejects(
        fetchRanges([parts(CONTENT, { bytesOf })]),
        (error) => ShaleError.is(error, "DATA_LOSS") && /where a part should have ended/.test(error.message),
      );
    });
  }

  test("asks again for parts that were left out", async () => {
    const { asked } = await fetchRanges([parts(CONTENT, { change: (list) => list.slice(0, 2) }), parts(CONTENT)]);
    assert.deepEqual(asked, [ALL, header(RANGES.slice(2))]);
  });

  test("asks again when nothing more comes", async () => {
    const { asked } = await fetchRanges([stallAfter(CONTENT, 5000), parts(CONTENT)], RANGES.slice(0, 1));
    assert.deepEqual(asked, [EACH[0], "bytes=5010-19999"]);
  });

  test("asks the registry for a new address when the one that it gave has expired", async () => {
    await using server = await startScriptedServer();
    await using storage = await startScriptedServer();
    await using made = testClient();
    storage.on("GET /old", status(403));
    storage.on("GET /new", parts(CONTENT));
    const [old, fresh] = [redirect(`${storage.origin}/old`), redirect(`${storage.origin}/new`)];
    const stored = server.blob("app", CONTENT, undefined, old, fresh);
    let bytes = 0;
    const pieces = made.client.openRanges(referenceTo(server, "app"), descriptorOf(stored), RANGES);
    for await (const piece of pieces) bytes += piece.bytes.length;
    assert.equal(bytes, SUM);
  });

  test("refuses a part that is none of those asked for", async () => {
    await assert.rejects(
      fetchRanges([part(CONTENT, 0, 3)]),
      (error) => ShaleError.is(error, "DATA_LOSS") && /none of those asked for \(bytes 0-3\/200000/.test(error.message),
    );
  });

  test("refuses a part that claims bytes behind the end of the blob", async () => {
    const change = () => [[0, 300_000]] as const;
    await assert.rejects(
      fetchRanges([parts(CONTENT, { change })]),
      (error) => ShaleError.is(error, "DATA_LOSS") && /has the range/.test(error.message),
    );
  });

  test("keeps the Range header short", async () => {
    const many = Array.from({ length: 1000 }, (_, i) => ({ offset: i * 200, end: i * 200 + 3 }));
    const { asked } = await fetchRanges([parts(CONTENT)], many);
    assert.ok(asked.every((one) => one!.length <= 4096));
    assert.ok(asked.length <= 6, `${asked.length} requests`);
  });

  test("is answered in parts by docker-registry", async () => {
    using directory = temporaryDirectory();
    await using registry = await startDockerRegistry(directory.path);
    await using made = testClient();
    const reference = parseReference(`${registry.host}/app`);
    const pushed = await made.client.pushBlob(reference, oneChunk(CONTENT));
    const descriptor = { ...pushed, mediaType: "application/octet-stream", annotations: {}, urls: [] };
    const got = Buffer.alloc(CONTENT.length);
    for await (const { offset, bytes } of made.client.openRanges(reference, descriptor, RANGES)) got.set(bytes, offset);
    for (const { offset, end } of RANGES) assert.ok(got.subarray(offset, end).equals(CONTENT.subarray(offset, end)));
    assert.equal(made.client.rangeAbility(reference), "many");
  });
});

async function* oneChunk(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

const byValue = (a: number, b: number) => a - b;

describe("readMultipart()", () => {
  test("gives the same bytes however the body is cut, and fails only with a Failure", async () => {
    const body = Buffer.from(
      `preamble\r\n--b\r\nContent-Range: bytes 3-7/100\r\nX: y\r\n\r\nabcde\r\n--b\r\ncontent-range:bytes 50-50/*\r\n\r\nz\r\n--b--\r\nepilogue`,
    );
    await fc.assert(
      fc.asyncProperty(fc.array(fc.integer({ min: 1, max: body.length }), { maxLength: 8 }), async (cuts) => {
        const got: [number, string][] = [];
        for await (const { offset, bytes } of readMultipart(cut(body, cuts), "b", 100, "h")) {
          for (const [i, byte] of bytes.entries()) got.push([offset + i, String.fromCharCode(byte)]);
        }
        assert.deepEqual(got, [
          [3, "a"],
          [4, "b"],
          [5, "c"],
          [6, "d"],
          [7, "e"],
          [50, "z"],
        ]);
      }),
      { numRuns: 100 },
    );
    await fc.assert(
      fc.asyncProperty(fc.nat(body.length - 1), fc.nat(255), fc.nat(body.length), async (at, byte, end) => {
        const broken = Buffer.from(body.subarray(0, end));
        if (at < end) broken[at] = byte;
        try {
          for await (const { offset, bytes } of readMultipart(cut(broken, [7]), "b", 100, "h")) {
            assert.ok(offset + bytes.length <= 100);
          }
        } catch (error) {
          assert.equal((error as Error).name, "Failure");
        }
      }),
      { numRuns: 300 },
    );
  });

  test("findBoundary() reads what servers write", () => {
    assert.equal(findBoundary("multipart/byteranges; boundary=abc"), "abc");
    assert.equal(findBoundary('Multipart/ByteRanges ;charset=x; boundary="a b"'), "a b");
    assert.equal(findBoundary("application/octet-stream"), undefined);
    assert.equal(findBoundary("multipart/byteranges"), undefined);
  });
});

async function* cut(bytes: Uint8Array, places: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0;
  for (const place of [...places].sort(byValue)) {
    if (place > at) yield Buffer.from(bytes.subarray(at, place)); // the reader may give its memory back
    at = Math.max(at, Math.min(place, bytes.length));
  }
  yield Buffer.from(bytes.subarray(at));
}
