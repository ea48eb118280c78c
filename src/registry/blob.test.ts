import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../errors/index.ts";
import { type RegistryOptions, releaseChunk } from "./index.ts";
import { collect, descriptorOf, referenceTo, someBytes, testClient } from "./testing/fixtures.ts";
import {
  breakAfter,
  ok,
  part,
  ranges,
  redirect,
  type ScriptedServer,
  type Step,
  stallAfter,
  startScriptedServer,
  status,
} from "./testing/scripted-server.ts";

const CONTENT = someBytes(300_000);
const SIZE = CONTENT.length;

interface Run {
  readonly server: ScriptedServer;
  readonly result: Buffer | ShaleError;
  readonly ranges: readonly (string | undefined)[];
}

/** Reads CONTENT from a server that answers with `steps`. */
async function read(
  steps: readonly Step[],
  options: { readonly offset?: number; readonly end?: number } = {},
  clientOptions: RegistryOptions = {},
): Promise<Run> {
  await using server = await startScriptedServer();
  await using one = testClient(clientOptions);
  const stored = server.blob("a/b", CONTENT, undefined, ...steps);
  let result: Buffer | ShaleError;
  try {
    result = await collect(one.client.openBlob(referenceTo(server, "a/b"), descriptorOf(stored), options));
  } catch (error) {
    if (!ShaleError.is(error)) throw error;
    result = error;
  }
  return { server, result, ranges: server.requests.map((request) => request.headers.range) };
}

test("openBlob() yields exactly the bytes, whatever the server does that it may do", async () => {
  const cases: Readonly<Record<string, readonly [readonly Step[], { offset?: number; end?: number }?]>> = {
    "a plain 200": [[ok(CONTENT)]],
    "a body without length": [[status(200, {}, CONTENT)]],
    "a range from an offset": [[ranges(CONTENT)], { offset: 1234 }],
    "a range in the middle": [[ranges(CONTENT)], { offset: 1234, end: 200_000 }],
    nothing: [[status(500)], { offset: SIZE }],
    "200 where a range was asked for": [[ok(CONTENT)], { offset: 1234, end: 200_000 }],
    "200 without length where a range was asked for": [[status(200, {}, CONTENT)], { offset: 70_000 }],
    "one reset": [[breakAfter(CONTENT, 100_000), ranges(CONTENT)]],
    "a reset at the first byte": [[breakAfter(CONTENT, 0), ranges(CONTENT)]],
    "resets at many places": [
      [1, 70_000, 3, 66_000, 65_536].map((n) => breakAfter(CONTENT, n)).concat(ranges(CONTENT)),
    ],
    "a reset, then 200 for the range": [[breakAfter(CONTENT, 100_000), ok(CONTENT)]],
    "a reset, then 200 that is reset before the old place, then a range": [
      [
        breakAfter(CONTENT, 100_000),
        status(200, { "content-length": String(SIZE) }, CONTENT.subarray(0, 0)),
        ranges(CONTENT),
      ],
    ],
    "parts shorter than asked for": [
      [part(CONTENT, 0, 99_999), part(CONTENT, 100_000, 199_999), ranges(CONTENT)],
      { end: SIZE - 1 },
    ],
    "a part of unknown whole": [
      [part(CONTENT, 10, SIZE - 1, { "content-range": `bytes 10-${SIZE - 1}/*` })],
      { offset: 10 },
    ],
    "a stall": [[stallAfter(CONTENT, 100_000), ranges(CONTENT)]],
    "500, 503, 429, 408": [
      [status(500), status(503), status(429, { "retry-after": "0" }), status(408), ranges(CONTENT)],
    ],
    "a Retry-After of the past": [[status(503, { "retry-after": "Wed, 21 Oct 2015 07:28:00 GMT" }), ranges(CONTENT)]],
    "a redirect on the same host": [[redirect("/elsewhere")]],
  };
  for (const [name, [steps, options = {}]] of Object.entries(cases)) {
    await using server = await startScriptedServer();
    await using one = testClient();
    server.on("GET /elsewhere", ranges(CONTENT));
    const stored = server.blob("a/b", CONTENT, undefined, ...steps);
    const bytes = await collect(one.client.openBlob(referenceTo(server, "a/b"), descriptorOf(stored), options));
    assert.ok(bytes.equals(CONTENT.subarray(options.offset ?? 0, options.end ?? SIZE)), name);
    for (const request of server.requests) assert.equal(request.headers["accept-encoding"], "identity", name);
  }
});

test("openBlob() asks for what is missing only", async () => {
  const { ranges: asked } = await read([breakAfter(CONTENT, 100_000), breakAfter(CONTENT, 50_000), ranges(CONTENT)]);
  assert.deepEqual(asked, [undefined, `bytes=100000-${SIZE - 1}`, `bytes=150000-${SIZE - 1}`]);
  assert.deepEqual((await read([ranges(CONTENT)], { offset: 5, end: 10 })).ranges, ["bytes=5-9"]);
});

test("openBlob() refuses answers that contradict the descriptor or the range, and asks no more", async () => {
  const longer = Buffer.concat([CONTENT, Buffer.from("x")]);
  const cases: Readonly<Record<string, readonly [Step, RegExp, { offset?: number; end?: number }?]>> = {
    "a lying Content-Length": [ok(longer), /it announces 300001 bytes, there should be 300000/],
    "a shorter whole": [ok(CONTENT.subarray(1)), /it announces 299999 bytes, there should be 300000/],
    "more bytes than the descriptor says": [status(200, {}, longer), /more than 300000 bytes arrived/],
    "another part": [part(CONTENT, 0, SIZE - 1), /it sends bytes 0-299999 of 300000 where 10-299999/, { offset: 10 }],
    "a later part": [part(CONTENT, 11, SIZE - 1), /it sends bytes 11-299999/, { offset: 10 }],
    "a part longer than asked for": [part(CONTENT, 10, 30), /it sends bytes 10-30/, { offset: 10, end: 20 }],
    "a part of another whole": [
      part(CONTENT, 10, SIZE - 1, { "content-range": `bytes 10-${SIZE - 1}/7` }),
      /of 7 where/,
      { offset: 10 },
    ],
    "a part without Content-Range": [status(206, {}, CONTENT), /a part without saying which/, { offset: 10 }],
    "several parts": [
      status(206, { "content-type": "multipart/byteranges; boundary=x" }, "--x"),
      /a part without saying which/,
      { offset: 10 },
    ],
    "a part whose length lies": [
      part(CONTENT, 10, SIZE - 1, { "content-length": "5", "content-range": `bytes 10-${SIZE - 1}/${SIZE}` }),
      /it announces 5 bytes/,
      { offset: 10 },
    ],
    "gzip that nobody asked for": [ok(CONTENT, { "content-encoding": "gzip" }), /sends Content-Encoding gzip/],
    "416": [status(416), /HTTP 416/, { offset: 10 }],
    "404": [status(404), /HTTP 404/],
    "a redirect to a file": [redirect("file:///etc/passwd"), /leads to no http or https URL/],
    "a redirect with a password": [redirect("http://u:p@127.0.0.1/"), /leads to no http or https URL/],
    "a Retry-After of an hour": [status(429, { "retry-after": "3600" }), /it asks for fewer requests/],
  };
  for (const [name, [step, message, options]] of Object.entries(cases)) {
    const { result, ranges: asked } = await read([step], options);
    assert.ok(result instanceof ShaleError, name);
    assert.match(result.message, message, name);
    assert.equal(asked.length, 1, name);
  }
});

test("openBlob() gives up in bounded time", async () => {
  const endless: readonly Step[] = [status(500), breakAfter(CONTENT, 1), status(429), stallAfter(CONTENT, 0)];
  for (const step of endless) {
    const { result, ranges: asked } = await read([step], {}, { retry: { attempts: 3 }, stallTimeoutMs: 50 });
    assert.ok(ShaleError.is(result));
    assert.match(result.message, /^Cannot fetch sha256:[0-9a-f]{64} of 127\.0\.0\.1:\d+\/a\/b: 127\.0\.0\.1:\d+: /);
    assert.equal(asked.length, 3);
  }
  const crumbs = await read([breakAfter(CONTENT, 70_000)], {}, { retry: { maxRequests: 3 } });
  assert.ok(ShaleError.is(crumbs.result, "UNAVAILABLE"));
  assert.equal(crumbs.ranges.length, 3);
  const loop = await read([(request, response) => redirect(`${request.url}`)(request, response)]);
  assert.ok(ShaleError.is(loop.result));
  assert.match(loop.result.message, /redirects more than 10 times/);
});

test("openBlob() ends its request when the reader leaves or aborts", async () => {
  await using server = await startScriptedServer();
  await using one = testClient({ stallTimeoutMs: 60_000 });
  const closed = Promise.withResolvers<void>();
  const stored = server.blob("a", CONTENT, undefined, (request, response) => {
    request.socket.on("close", () => closed.resolve());
    stallAfter(CONTENT, 100_000)(request, response);
  });
  const reference = referenceTo(server, "a");
  for await (const chunk of one.client.openBlob(reference, descriptorOf(stored))) {
    assert.ok(chunk.length > 0);
    break;
  }
  await closed.promise;

  const abort = new AbortController();
  const reading = collect(one.client.openBlob(reference, descriptorOf(stored), { signal: abort.signal }));
  setTimeout(() => abort.abort(), 20);
  await assert.rejects(reading, { code: "CANCELLED" });
  await assert.rejects(collect(one.client.openBlob(reference, descriptorOf(stored), { signal: abort.signal })), {
    code: "CANCELLED",
  });
});

test("releaseChunk() of each chunk leaves those behind it whole, whatever the body's framing", async () => {
  await using server = await startScriptedServer();
  await using one = testClient();
  const framings: readonly Step[] = [
    ok(CONTENT),
    // many small pieces of a chunked body come in one buffer
    (_request, response) => {
      response.writeHead(200);
      for (let at = 0; at < SIZE; at += 777) response.write(CONTENT.subarray(at, at + 777));
      response.end();
    },
  ];
  for (const step of framings) {
    const stored = server.blob("r", CONTENT, undefined, step);
    const hash = createHash("sha256");
    for await (const chunk of one.client.openBlob(referenceTo(server, "r"), descriptorOf(stored))) {
      hash.update(chunk);
      releaseChunk(chunk);
      releaseChunk(chunk);
    }
    assert.equal(`sha256:${hash.digest("hex")}`, stored.digest);
  }
  const own = new Uint8Array(100_000);
  const view = own.subarray(1);
  releaseChunk(view);
  assert.equal(own.byteLength, 100_000, "a view of something larger stays");
  releaseChunk(own);
  assert.equal(own.byteLength, 0);
});

test("openBlob() rejects a range outside of the blob", async () => {
  await using one = testClient();
  const descriptor = descriptorOf({ mediaType: "x/y", digest: `sha256:${"0".repeat(64)}`, size: 10, bytes: CONTENT });
  const reference = { host: "localhost", repository: "x", tag: "y" };
  for (const [offset, end] of [
    [-1, 5],
    [6, 5],
    [0, 11],
    [Number.NaN, 5],
  ] as const) {
    assert.throws(() => one.client.openBlob(reference, descriptor, { offset, end }), RangeError);
  }
});

test("openBlob() gives the same bytes for any breaks (property)", async () => {
  await using server = await startScriptedServer();
  await using one = testClient({ retry: { attempts: 50 } });
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.boolean(), fc.nat(SIZE)), { maxLength: 6 }),
      fc.nat(SIZE),
      fc.boolean(),
      async (breaks, offset, knowsRanges) => {
        const steps = breaks.map(([reset, at]) => (reset ? breakAfter(CONTENT, at) : status(503)));
        const stored = server.blob("p", CONTENT, undefined, ...steps, knowsRanges ? ranges(CONTENT) : ok(CONTENT));
        const bytes = await collect(one.client.openBlob(referenceTo(server, "p"), descriptorOf(stored), { offset }));
        assert.ok(bytes.equals(CONTENT.subarray(offset)));
      },
    ),
    { numRuns: 25 },
  );
});
