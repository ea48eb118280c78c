import assert from "node:assert/strict";
import { once } from "node:events";
import { connect } from "node:net";
import { test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { type Descriptor, type Digest, digestOf, MediaType } from "../oci/index.ts";
import { type AccessRecord, type ContentProvider, type Registry, startRegistry } from "./index.ts";

const blob = Buffer.from("0123456789");
const blobDigest = digestOf(blob);
const manifest = Buffer.from('{"schemaVersion":2}');
const descriptor: Descriptor = {
  mediaType: MediaType.OCI_MANIFEST,
  digest: digestOf(manifest),
  size: manifest.length,
  annotations: {},
  urls: [],
};

/** What the server asked of the provider, and whether an iteration was ended. */
class Content implements ContentProvider {
  readonly asked: string[] = [];
  readonly tags = ["v2", "v10", "v1"];
  read: (start: number, end: number, signal: AbortSignal) => Iterable<Uint8Array> | AsyncIterable<Uint8Array> = (
    start,
    end,
  ) => [blob.subarray(start, end)];
  size = blob.length;
  closed = 0;

  resolve(repository: string, reference: string) {
    this.asked.push(`${repository} ${reference}`);
    return reference === "v1" || reference === descriptor.digest ? { descriptor, bytes: manifest } : undefined;
  }
  openBlob(repository: string, digest: Digest) {
    this.asked.push(`${repository} ${digest}`);
    if (digest !== blobDigest) return undefined;
    return {
      size: this.size,
      read: (start: number, end: number, { signal }: { signal: AbortSignal }) => this.read(start, end, signal),
      close: () => {
        this.closed++;
      },
    };
  }
  listTags(repository: string) {
    return repository === "lib/app" ? this.tags : undefined;
  }
  listRepositories() {
    return ["lib/app", "a"];
  }
}

async function withServer(
  run: (server: Registry, content: Content, log: AccessRecord[]) => Promise<void>,
  options: Parameters<typeof startRegistry>[1] = {},
): Promise<void> {
  const content = new Content();
  const log: AccessRecord[] = [];
  await using server = await startRegistry(content, { ...options, log: (record) => log.push(record) });
  await run(server, content, log);
}

const manifestPath = `/v2/lib/app/manifests/v1`;
const blobPath = `/v2/lib/app/blobs/${blobDigest}`;

interface Case {
  readonly name: string;
  readonly path: string;
  readonly method?: string;
  readonly headers?: Record<string, string>;
  readonly status: number;
  readonly code?: string;
  readonly body?: string;
  readonly answer?: Record<string, string | null>;
}

const digestHeaders = { "docker-content-digest": blobDigest, etag: `"${blobDigest}"`, "accept-ranges": "bytes" };
const cases: readonly Case[] = [
  { name: "the API version", path: "/v2/", status: 200, body: "{}\n" },
  {
    name: "a manifest by tag",
    path: manifestPath,
    status: 200,
    body: manifest.toString(),
    answer: {
      "content-type": MediaType.OCI_MANIFEST,
      "content-length": "19",
      "docker-content-digest": descriptor.digest,
      etag: `"${descriptor.digest}"`,
    },
  },
  { name: "a manifest by digest", path: `/v2/lib/app/manifests/${descriptor.digest}`, status: 200 },
  {
    name: "HEAD of a manifest",
    path: manifestPath,
    method: "HEAD",
    status: 200,
    body: "",
    answer: { "content-length": "19", "docker-content-digest": descriptor.digest },
  },
  {
    name: "a manifest that Accept does not allow",
    path: manifestPath,
    headers: { accept: MediaType.DOCKER_MANIFEST },
    status: 404,
    code: "MANIFEST_UNKNOWN",
  },
  {
    name: "a manifest that the client has",
    path: manifestPath,
    headers: { "if-none-match": `"${descriptor.digest}"` },
    status: 304,
    body: "",
  },
  { name: "an unknown tag", path: "/v2/lib/app/manifests/v9", status: 404, code: "MANIFEST_UNKNOWN" },
  { name: "HEAD of an unknown tag", path: "/v2/lib/app/manifests/v9", method: "HEAD", status: 404, body: "" },
  { name: "a blob", path: blobPath, status: 200, body: "0123456789", answer: digestHeaders },
  { name: "a blob with an encoded colon", path: blobPath.replace(":", "%3A"), status: 200, body: "0123456789" },
  { name: "HEAD of a blob", path: blobPath, method: "HEAD", status: 200, body: "", answer: { "content-length": "10" } },
  {
    name: "HEAD of a blob with Range",
    path: blobPath,
    method: "HEAD",
    headers: { range: "bytes=1-2" },
    status: 200,
    answer: { "content-length": "10" },
  },
  {
    name: "a range",
    path: blobPath,
    headers: { range: "bytes=2-4" },
    status: 206,
    body: "234",
    answer: { "content-range": "bytes 2-4/10", "content-length": "3" },
  },
  { name: "an open range", path: blobPath, headers: { range: "bytes=7-" }, status: 206, body: "789" },
  { name: "a suffix range", path: blobPath, headers: { range: "bytes=-2" }, status: 206, body: "89" },
  {
    name: "a range outside",
    path: blobPath,
    headers: { range: "bytes=10-" },
    status: 416,
    answer: { "content-range": "bytes */10" },
  },
  {
    name: "a range of another version",
    path: blobPath,
    headers: { range: "bytes=2-4", "if-range": '"sha256:other"' },
    status: 200,
    body: "0123456789",
  },
  {
    name: "a range of this version",
    path: blobPath,
    headers: { range: "bytes=2-4", "if-range": `"${blobDigest}"` },
    status: 206,
    body: "234",
  },
  { name: "a blob that the client has", path: blobPath, headers: { "if-none-match": "*" }, status: 304, body: "" },
  {
    name: "an unknown blob",
    path: `/v2/lib/app/blobs/${digestOf("x")}`,
    status: 404,
    code: "BLOB_UNKNOWN",
  },
  { name: "a malformed digest", path: "/v2/lib/app/blobs/sha256:xyz", status: 400, code: "DIGEST_INVALID" },
  {
    name: "tags in byte order",
    path: "/v2/lib/app/tags/list",
    status: 200,
    body: '{"name":"lib/app","tags":["v1","v10","v2"]}\n',
    answer: { link: null },
  },
  {
    name: "a page of tags",
    path: "/v2/lib/app/tags/list?n=1&last=v1",
    status: 200,
    body: '{"name":"lib/app","tags":["v10"]}\n',
    answer: { link: '</v2/lib/app/tags/list?n=1&last=v10>; rel="next"' },
  },
  {
    name: "the last page of tags",
    path: "/v2/lib/app/tags/list?n=1&last=v10",
    status: 200,
    body: '{"name":"lib/app","tags":["v2"]}\n',
    answer: { link: null },
  },
  {
    name: "a page of no tags",
    path: "/v2/lib/app/tags/list?n=0",
    status: 200,
    body: '{"name":"lib/app","tags":[]}\n',
    answer: { link: null },
  },
  { name: "a malformed n", path: "/v2/lib/app/tags/list?n=-1", status: 400, code: "PAGINATION_NUMBER_INVALID" },
  { name: "tags of an unknown repository", path: "/v2/other/tags/list", status: 404, code: "NAME_UNKNOWN" },
  { name: "the catalog", path: "/v2/_catalog", status: 200, body: '{"repositories":["a","lib/app"]}\n' },
  { name: "an upload", path: "/v2/lib/app/blobs/uploads/", method: "POST", status: 405, code: "UNSUPPORTED" },
  { name: "a deletion", path: manifestPath, method: "DELETE", status: 405, answer: { allow: "GET, HEAD" } },
  { name: "referrers", path: `/v2/lib/app/referrers/${blobDigest}`, status: 404, code: "UNSUPPORTED" },
  { name: "another path", path: "/etc/passwd", status: 404, code: "UNSUPPORTED" },
  { name: "an upper-case name", path: "/v2/Lib/manifests/v1", status: 400, code: "NAME_INVALID" },
  { name: "an over-long path", path: `/v2/${"a/".repeat(1200)}b/manifests/v1`, status: 414, code: "UNSUPPORTED" },
];

for (const { name, path, method = "GET", headers = {}, status, code, body, answer = {} } of cases) {
  test(`startRegistry() answers ${name} with ${status}`, () =>
    withServer(async (server) => {
      const response = await fetch(server.url + path, { method, headers });
      const text = await response.text();
      assert.equal(response.status, status);
      for (const [key, value] of Object.entries(answer)) assert.equal(response.headers.get(key), value, key);
      if (body !== undefined) assert.equal(text, body);
      if (code !== undefined) {
        assert.equal(response.headers.get("content-type"), "application/json");
        assert.equal((JSON.parse(text) as { errors: { code: string }[] }).errors[0]?.code, code);
      }
    }));
}

test("startRegistry() sends several ranges as multipart/byteranges, in the order asked for", () =>
  withServer(async (server) => {
    const response = await fetch(server.url + blobPath, { headers: { range: "bytes=-2,0-0" } });
    assert.equal(response.status, 206);
    const boundary = /^multipart\/byteranges; boundary=(\w+)$/.exec(response.headers.get("content-type") ?? "")?.[1];
    const text = await response.text();
    assert.equal(response.headers.get("content-length"), String(text.length));
    const part = (place: string, bytes: string) =>
      `\r\n--${boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes ${place}/10\r\n\r\n${bytes}`;
    assert.equal(text, `${part("8-9", "89")}${part("0-0", "0")}\r\n--${boundary}--\r\n`);
  }));

/** Sends bytes as they are (fetch would normalise them) and returns all that comes back. */
async function raw(server: Registry, text: string): Promise<string> {
  const socket = connect(server.port, server.host);
  socket.setEncoding("latin1");
  socket.write(text);
  let answer = "";
  for await (const piece of socket) answer += piece;
  return answer;
}

for (const path of [
  "/v2/../manifests/v1",
  "/v2/a/../../etc/manifests/passwd",
  "/v2/a/manifests/..",
  "/v2/a%2f..%2fb/manifests/v1",
  "/v2//a/manifests/v1",
  "/v2/a/blobs/sha256:../../../../etc/passwd",
  "/v2/a/blobs/..%2f..%2fetc%2fpasswd",
  "/v2/a/manifests/x@y",
  "/v2/a:b/manifests/v1",
  "/v2/a@sha256:b/manifests/v1",
  "/v2/a/manifests/v1%00",
  "http://other/v2/",
  "*",
]) {
  test(`startRegistry() never lets ${path} reach the provider`, () =>
    withServer(async (server, content) => {
      const answer = await raw(server, `GET ${path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n`);
      assert.match(answer, /^HTTP\/1\.1 40[04] /);
      assert.deepEqual(content.asked, []);
    }));
}

test("startRegistry() refuses a read request with a body and closes the connection", () =>
  withServer(async (server) => {
    const answer = await raw(server, `GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello`);
    assert.match(answer, /^HTTP\/1\.1 400 [\s\S]*connection: close/i);
  }));

/** The header may be lost with the connection, or only the body. */
async function readAll(url: string): Promise<ArrayBuffer> {
  return (await fetch(url)).arrayBuffer();
}

test("startRegistry() cuts the connection when a blob is shorter than its size", () =>
  withServer(async (server, content, log) => {
    content.size = 20;
    await assert.rejects(readAll(server.url + blobPath));
    await server.close();
    assert.equal(log[0]?.complete, false);
    assert.ok(ShaleError.is(log[0]?.error, "DATA_LOSS"));
    assert.equal(content.closed, 1);
  }));

test("startRegistry() cuts the connection when a blob gives more than was asked for", () =>
  withServer(async (server, content, log) => {
    content.read = () => [blob.subarray(0, 6), blob];
    await assert.rejects(readAll(server.url + blobPath));
    await server.close();
    assert.ok(ShaleError.is(log[0]?.error, "DATA_LOSS"));
  }));

test("startRegistry() tells the client nothing of a provider's error but the status", () =>
  withServer(async (server, content, log) => {
    content.resolve = () => {
      throw new ShaleError("DATA_LOSS", "Cannot read /secret/path: damaged");
    };
    const response = await fetch(server.url + manifestPath);
    assert.equal(response.status, 500);
    assert.doesNotMatch(await response.text(), /secret/);
    assert.match(String(log[0]?.error), /secret/);
    content.resolve = () => {
      throw new ShaleError("UNAVAILABLE", "Cannot reach it");
    };
    assert.equal((await fetch(server.url + manifestPath)).status, 503);
  }));

test("startRegistry() ends the provider's iteration and closes the blob when the client goes away", () =>
  withServer(async (server, content) => {
    content.size = 1 << 30;
    const ended = Promise.withResolvers<number>();
    content.read = async function* () {
      let pieces = 0;
      try {
        for (;;) {
          pieces++;
          yield Buffer.alloc(1 << 20);
        }
      } finally {
        ended.resolve(pieces);
      }
    };
    const abort = new AbortController();
    const response = await fetch(server.url + blobPath, { signal: abort.signal });
    const reader = response.body!.getReader();
    await reader.read();
    abort.abort();
    // Backpressure: what the sockets hold, not the whole gigabyte, was asked for before the client went away.
    assert.ok((await ended.promise) < 100);
    await server.close();
    assert.equal(content.closed, 1);
  }));

test("startRegistry() aborts the provider's signal when the client goes away during a wait", () =>
  withServer(async (server, content) => {
    const started = Promise.withResolvers<void>();
    const aborted = Promise.withResolvers<void>();
    content.read = async function* (_start, _end, signal) {
      started.resolve();
      signal.addEventListener("abort", () => aborted.resolve());
      await aborted.promise;
      yield blob;
    };
    const socket = connect(server.port, server.host);
    socket.write(`GET ${blobPath} HTTP/1.1\r\nHost: x\r\n\r\n`);
    await started.promise;
    socket.destroy();
    await aborted.promise;
  }));

test("Registry.close() lets a running answer end, takes no new connection, and may be called twice", () =>
  withServer(async (server, content) => {
    const go = Promise.withResolvers<void>();
    content.read = async function* () {
      yield blob.subarray(0, 5);
      await go.promise;
      yield blob.subarray(5);
    };
    const response = await fetch(server.url + blobPath);
    const closed = Promise.all([server.close(), server.close()]);
    await assert.rejects(fetch(`${server.url}/v2/`));
    go.resolve();
    assert.equal(await response.text(), "0123456789");
    await closed;
  }));

test("startRegistry() abandons running answers when its signal is aborted", async () => {
  const content = new Content();
  const stop = new AbortController();
  const server = await startRegistry(content, { signal: stop.signal });
  const waiting = Promise.withResolvers<void>();
  content.read = async function* (_start, _end, signal) {
    yield blob.subarray(0, 5);
    waiting.resolve();
    await once(signal, "abort");
  };
  const response = await fetch(server.url + blobPath);
  await waiting.promise;
  stop.abort();
  await assert.rejects(response.text());
  await server.close();
  assert.equal(content.closed, 1);
});

test("startRegistry() rejects with CANCELLED for a signal that is aborted already", async () => {
  const starting = startRegistry(new Content(), { signal: AbortSignal.abort() });
  await assert.rejects(starting, (error) => ShaleError.is(error, "CANCELLED"));
});

test("startRegistry() cuts a connection that sends its headers too slowly", () =>
  withServer(
    async (server) => {
      const answer = await raw(server, "GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Slow:");
      assert.match(answer, /^HTTP\/1\.1 408 /);
    },
    { headersTimeoutMs: 100 },
  ));

test("startRegistry() cuts a connection on which nothing moves", () =>
  withServer(
    async (server, content, log) => {
      content.size = 1 << 30;
      content.read = function* () {
        for (;;) yield Buffer.alloc(1 << 20);
      };
      const socket = connect(server.port, server.host);
      socket.write(`GET ${blobPath} HTTP/1.1\r\nHost: x\r\n\r\n`);
      socket.pause();
      socket.on("error", () => undefined); // the reset
      while (log.length === 0) await new Promise((resolve) => setTimeout(resolve, 20));
      assert.equal(log[0]?.complete, false);
      socket.destroy();
    },
    { idleTimeoutMs: 100 },
  ));

test("startRegistry() refuses headers over 16 KiB", () =>
  withServer(async (server) => {
    const answer = await raw(server, `GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ${"x".repeat(17_000)}\r\n\r\n`);
    assert.match(answer, /^HTTP\/1\.1 431 /);
  }));

test("startRegistry() names the address that it can't have", async () => {
  await using first = await startRegistry(new Content());
  const second = startRegistry(new Content(), { port: first.port });
  await assert.rejects(second, (error) => ShaleError.is(error, "FAILED_PRECONDITION") && /in use/.test(error.message));
  const nowhere = startRegistry(new Content(), { host: "192.0.2.1" });
  await assert.rejects(nowhere, (error) => ShaleError.is(error, "INVALID_ARGUMENT"));
});
