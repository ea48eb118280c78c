/** Pushing, to Debian's docker-registry with skopeo as the judge, and to a server that misbehaves as told. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer as createHttpServer, request as httpRequest } from "node:http";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../errors/index.ts";
import { type Descriptor, type Digest, digestOf, MediaType, parseReference, type Reference } from "../oci/index.ts";
import { HeldPieces } from "./held-pieces.ts";
import { type DockerRegistry, startDockerRegistry } from "./testing/docker-registry.ts";
import { collect, referenceTo, someBytes, testClient } from "./testing/fixtures.ts";
import { type ScriptedServer, type Step, startScriptedServer, status } from "./testing/scripted-server.ts";

const USER = "someone";
const PASSWORD = "a:pass word";
/** python3.11 -c 'from crypt import *; print(crypt("a:pass word", mksalt(METHOD_BLOWFISH, rounds=16)))' */
const BCRYPT = "$2b$04$gzgidfsZzoVbNoP5gP4xL.BgD04VjYPg3vRvV8xZMp5BisUhgCll.";
const CHUNK = 1 << 20;

const directory = mkdtempSync(join(tmpdir(), "shale-push-"));
let registry: DockerRegistry;

before(async () => {
  registry = await startDockerRegistry(join(directory, "registry"));
});

after(async () => {
  await registry.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** Pieces of odd sizes, so that chunk borders fall anywhere. */
async function* stream(bytes: Uint8Array, step = 60_001): AsyncGenerator<Uint8Array, void, void> {
  for (let at = 0; at < bytes.length; at += step) yield bytes.subarray(at, at + step);
}

const expectedOf = (bytes: Uint8Array) => ({ digest: digestOf(bytes), size: bytes.length });
const descriptorFor = (bytes: Uint8Array, mediaType: string): Descriptor => ({
  ...expectedOf(bytes),
  mediaType,
  annotations: {},
  urls: [],
});
const patient = () => testClient({ stallTimeoutMs: 120_000 });

describe("docker-registry", () => {
  for (const [name, size] of [
    ["nothing", 0],
    ["less than a piece", 1000],
    ["exactly one piece", CHUNK],
    ["exactly three pieces", 3 * CHUNK],
    ["some pieces and a rest", 3 * CHUNK + 17],
  ] as const) {
    test(`pushBlob() of ${name} from a stream of unknown size`, async () => {
      await using one = patient();
      const bytes = someBytes(size);
      const reference = parseReference(`${registry.host}/streams:x`);
      let told = 0;
      const pushed = await one.client.pushBlob(reference, stream(bytes), {
        chunkSize: CHUNK,
        onBytes: (count) => {
          told += count;
        },
      });
      assert.deepEqual(pushed, { ...expectedOf(bytes), how: "uploaded" });
      assert.equal(told, size);
      const back = await collect(one.client.openBlob(reference, descriptorFor(bytes, MediaType.OCI_LAYER)));
      assert.ok(back.equals(bytes));
    });
  }

  test("pushBlob() sends nothing that is there, and mounts what another repository has", async () => {
    await using one = patient();
    const bytes = someBytes(100_000);
    const expected = expectedOf(bytes);
    const to = (repository: string) => parseReference(`${registry.host}/${repository}:x`);
    const never = () => assert.fail("the bytes were asked for");
    assert.equal((await one.client.pushBlob(to("origin"), stream(bytes), { expected })).how, "uploaded");
    assert.equal((await one.client.pushBlob(to("origin"), never, { expected })).how, "present");
    assert.equal(
      (await one.client.pushBlob(to("other/place"), never, { expected, mountFrom: "origin" })).how,
      "mounted",
    );
    assert.equal((await one.client.pushBlob(to("other/place"), never, { expected })).how, "present");
    const fresh = someBytes(1000);
    const mountMissing = { expected: expectedOf(fresh), mountFrom: "origin" };
    assert.equal((await one.client.pushBlob(to("third"), stream(fresh), mountMissing)).how, "uploaded");
  });

  test("an image that was pushed is what skopeo reads", async () => {
    await using one = patient();
    const reference = parseReference(`${registry.host}/some/image:v1`);
    const { manifest } = await pushImage(one.client, reference, someBytes(3 * CHUNK + 5));
    const digest = digestOf(manifest);
    const skopeo = (...parameters: string[]) => execFileSync("skopeo", parameters, { encoding: "utf8" });
    const inspected: unknown = JSON.parse(
      skopeo("inspect", "--tls-verify=false", `docker://${registry.host}/some/image:v1`),
    );
    assert.ok(typeof inspected === "object" && inspected !== null && "Digest" in inspected);
    assert.equal(inspected.Digest, digest);
    const copy = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false"];
    skopeo(...copy, `docker://${registry.host}/some/image@${digest}`, `oci:${join(directory, "copy")}:v1`);
  });

  test("pushManifest() by digest, and a digest that is another's", async () => {
    await using one = patient();
    const reference = parseReference(`${registry.host}/by-digest:v1`);
    const { manifest } = await pushImage(one.client, reference, someBytes(10));
    const { tag: _, ...untagged } = reference;
    const document = { bytes: manifest, mediaType: MediaType.OCI_MANIFEST };
    const digest = digestOf(manifest);
    assert.equal((await one.client.pushManifest({ ...untagged, digest }, document)).digest, digest);
    const wrong = { ...untagged, digest: digestOf("something else") };
    await assert.rejects(one.client.pushManifest(wrong, document), { code: "INVALID_ARGUMENT" });
  });

  test("a manifest whose blobs are missing is refused with the registry's reason", async () => {
    await using one = patient();
    const reference = parseReference(`${registry.host}/incomplete:v1`);
    const manifest = manifestOver(descriptorFor(Buffer.from("{}"), MediaType.OCI_CONFIG), []);
    await assert.rejects(
      one.client.pushManifest(reference, { bytes: manifest, mediaType: MediaType.OCI_MANIFEST }),
      (error) => ShaleError.is(error, "INVALID_ARGUMENT") && /MANIFEST_BLOB_UNKNOWN/.test(error.message),
    );
  });

  test("the registry restarts between two pieces, and the upload goes on", async () => {
    await using own = await startDockerRegistry(join(directory, "restarted"));
    await using one = testClient({ stallTimeoutMs: 120_000, retry: { attempts: 200, baseMs: 20, maxMs: 20 } });
    const bytes = someBytes(4 * CHUNK);
    let opened = 0;
    async function* restarting() {
      opened++;
      let at = 0;
      for await (const chunk of stream(bytes)) {
        if (at < 3 * CHUNK && at + chunk.length >= 3 * CHUNK) {
          await own.stop();
          await own.start();
        }
        at += chunk.length;
        yield chunk;
      }
    }
    const pushed = await one.client.pushBlob(parseReference(`${own.host}/x:x`), restarting(), { chunkSize: CHUNK });
    assert.deepEqual(pushed, { ...expectedOf(bytes), how: "uploaded" });
    assert.equal(opened, 1);
  });

  test("a connection that breaks within a piece: again from the start where that can be", async () => {
    await using line = await breakingLine(registry.host, 2.5 * CHUNK);
    await using one = testClient({ stallTimeoutMs: 120_000 });
    const bytes = someBytes(4 * CHUNK);
    const reference = parseReference(`${line.host}/broken:x`);
    let told = 0;
    const pushed = await one.client.pushBlob(reference, () => stream(bytes), {
      chunkSize: CHUNK,
      onBytes: (count) => {
        told += count;
      },
    });
    assert.deepEqual(pushed, { ...expectedOf(bytes), how: "uploaded" });
    assert.equal(told, bytes.length);
    assert.equal(line.broken(), 1);
    const back = await collect(one.client.openBlob(reference, descriptorFor(bytes, MediaType.OCI_LAYER)));
    assert.ok(back.equals(bytes));
  });

  test("all bytes in one request, where something before the registry refuses pieces", async () => {
    await using gate = await refusingGate(registry.host);
    await using one = patient();
    const bytes = someBytes(3 * CHUNK + 17);
    const reference = parseReference(`${gate.host}/whole:x`);
    const pushed = await one.client.pushBlob(reference, () => stream(bytes), { chunkSize: CHUNK });
    assert.deepEqual(pushed, { ...expectedOf(bytes), how: "uploaded" });
    assert.equal(gate.refused(), 1);
    const back = await collect(one.client.openBlob(reference, descriptorFor(bytes, MediaType.OCI_LAYER)));
    assert.ok(back.equals(bytes));
  });

  test("with a password, with a wrong one, without", async () => {
    writeFileSync(join(directory, "htpasswd"), `${USER}:${BCRYPT}\n`);
    const more = `auth: {htpasswd: {realm: test, path: ${join(directory, "htpasswd")}}}\n`;
    await using guarded = await startDockerRegistry(join(directory, "guarded"), more);
    const authFile = join(directory, "auth.json");
    const login = (password: string) => {
      const auth = Buffer.from(`${USER}:${password}`).toString("base64");
      writeFileSync(authFile, JSON.stringify({ auths: { [guarded.host]: { auth } } }));
    };
    const reference = parseReference(`${guarded.host}/private:x`);
    login(PASSWORD);
    await using one = testClient({ authFile, stallTimeoutMs: 120_000 });
    await pushImage(one.client, reference, someBytes(CHUNK + 1));
    login("wrong");
    await using wrong = testClient({ authFile, stallTimeoutMs: 120_000 });
    await assert.rejects(pushImage(wrong.client, reference, someBytes(10)), { code: "UNAUTHENTICATED" });
    await using none = patient();
    await assert.rejects(pushImage(none.client, reference, someBytes(10)), { code: "UNAUTHENTICATED" });
  });
});

const UPLOADS = "/v2/app/blobs/uploads/";
const SESSION = "/v2/app/blobs/uploads/one";
const accepted = (last: number, location = `${SESSION}?state=a%2Fb`): Step =>
  status(202, { location, ...(last < 0 ? {} : { range: `0-${last}` }) });

/** A server on which the plain case works: one session, pieces taken, any digest confirmed. */
async function scripted(): Promise<ScriptedServer> {
  const server = await startScriptedServer();
  server.on(`POST ${UPLOADS}`, accepted(-1));
  server.on(`PATCH ${SESSION}`, accepted(0));
  server.on(`PUT ${SESSION}`, status(201));
  server.on(`DELETE ${SESSION}`, status(204));
  return server;
}

const methods = (server: ScriptedServer) => server.requests.map((one) => one.method).join(" ");

describe("a server that misbehaves", () => {
  const bytes = Buffer.from("0123456789abcdefghij");

  test("what one piece holds is one PUT at the address given, with its query untouched", async () => {
    await using server = await scripted();
    await using one = testClient();
    await one.client.pushBlob(referenceTo(server, "app:x"), [bytes], {});
    assert.equal(methods(server), "POST PUT");
    assert.equal(server.requests[1]!.url, `${SESSION}?state=a%2Fb&digest=${encodeURIComponent(digestOf(bytes))}`);
    assert.equal(server.requests[1]!.body, bytes.toString());
  });

  test("an interrupted piece goes on where the registry says", async () => {
    await using server = await scripted();
    server.on(`PATCH ${SESSION}`, accepted(7), status(502), accepted(15), accepted(19));
    server.on(`GET ${SESSION}`, status(204, { range: "0-10", location: SESSION }));
    await using one = testClient();
    const pushed = await one.client.pushBlob(referenceTo(server, "app:x"), stream(bytes, 3), { chunkSize: 8 });
    assert.deepEqual(pushed, { ...expectedOf(bytes), how: "uploaded" });
    assert.equal(methods(server), "POST PATCH PATCH GET PATCH PATCH PUT");
    const patches = server.requests.filter((request) => request.method === "PATCH");
    assert.deepEqual(
      patches.map((request) => [request.headers["content-range"], request.body]),
      [
        ["0-7", "01234567"],
        ["8-15", "89abcdef"],
        ["11-15", "bcdef"],
        ["16-19", "ghij"],
      ],
    );
    assert.ok(one.events.some((event) => event.kind === "resume" && event.offset === 11));
  });

  test("a session that is lost: anew from a source that can be read again, else UNAVAILABLE", async () => {
    const lose = (server: ScriptedServer) => {
      server.on(`PATCH ${SESSION}`, accepted(7), status(404), accepted(7), accepted(15), accepted(19));
    };
    await using server = await scripted();
    lose(server);
    await using one = testClient();
    const reference = referenceTo(server, "app:x");
    await one.client.pushBlob(reference, () => stream(bytes, 3), { chunkSize: 8 });
    assert.equal(methods(server), "POST PATCH PATCH POST PATCH PATCH PATCH PUT");
    lose(server);
    await assert.rejects(one.client.pushBlob(reference, stream(bytes, 3), { chunkSize: 8 }), (error) => {
      return ShaleError.is(error, "UNAVAILABLE") && /lost the upload/.test(error.message);
    });
  });

  test("a registry that keeps losing it is given up", async () => {
    await using server = await scripted();
    server.on(`PATCH ${SESSION}`, status(404));
    await using one = testClient();
    let opened = 0;
    const source = () => {
      opened++;
      return stream(bytes, 3);
    };
    await assert.rejects(one.client.pushBlob(referenceTo(server, "app:x"), source, { chunkSize: 8 }), {
      code: "UNAVAILABLE",
    });
    assert.equal(opened, 5);
  });

  test("a registry that takes no pieces gets all bytes in one request, where they can be read again", async () => {
    for (const refusal of [400, 405, 501]) {
      await using server = await scripted();
      server.on(`PATCH ${SESSION}`, (request, response) => {
        const step = request.headers["content-range"] === undefined ? accepted(19) : status(refusal);
        step(request, response);
      });
      await using one = testClient();
      let told = 0;
      const onBytes = (count: number) => {
        told += count;
      };
      const reference = referenceTo(server, "app:x");
      const pushed = await one.client.pushBlob(reference, () => stream(bytes, 3), { chunkSize: 8, onBytes });
      assert.deepEqual(pushed, { ...expectedOf(bytes), how: "uploaded" });
      assert.equal(methods(server), "POST PATCH POST PATCH PUT");
      const whole = server.requests.at(-2)!;
      assert.deepEqual([whole.body, whole.headers["transfer-encoding"]], [bytes.toString(), "chunked"]);
      assert.equal(told, bytes.length);
      await assert.rejects(one.client.pushBlob(reference, stream(bytes, 3), { chunkSize: 8 }), { code: "UNAVAILABLE" });
    }
  });

  test("an error of the source in the one request is its own", async () => {
    await using server = await scripted();
    server.on(`PATCH ${SESSION}`, status(405), accepted(19));
    await using one = testClient();
    let opened = 0;
    async function* failing() {
      const turn = ++opened;
      yield bytes;
      if (turn > 1) throw new ShaleError("DATA_LOSS", "Cannot go on");
      yield bytes;
    }
    await assert.rejects(one.client.pushBlob(referenceTo(server, "app:x"), failing, { chunkSize: 8 }), {
      message: "Cannot go on",
    });
  });

  test("5xx is tried again, and a lost answer to the last request is found out", async () => {
    await using server = await scripted();
    const { digest } = expectedOf(bytes);
    server.on(`POST ${UPLOADS}`, status(503), accepted(-1));
    server.on(`PUT ${SESSION}`, status(500));
    server.on(`HEAD /v2/app/blobs/${digest}`, status(404), status(200, { "content-length": String(bytes.length) }));
    await using one = testClient();
    await one.client.pushBlob(referenceTo(server, "app:x"), [bytes], { expected: expectedOf(bytes) });
    assert.equal(methods(server), "HEAD POST POST PUT HEAD");
  });

  test("bytes that are not the expected ones are refused before they become a blob, and the upload is given up", async () => {
    await using server = await scripted();
    await using one = testClient();
    const expected = { digest: digestOf("other"), size: bytes.length };
    const pushing = one.client.pushBlob(referenceTo(server, "app:x"), stream(bytes), { expected, chunkSize: 8 });
    await assert.rejects(pushing, { code: "INVALID_ARGUMENT" });
    assert.equal(methods(server), "HEAD POST PATCH PATCH DELETE");
  });

  test("a source that fails ends the upload with its own error", async () => {
    await using server = await scripted();
    await using one = testClient();
    async function* failing() {
      yield bytes;
      throw new ShaleError("DATA_LOSS", "Cannot go on");
    }
    const pushing = one.client.pushBlob(referenceTo(server, "app:x"), failing(), { chunkSize: 8 });
    await assert.rejects(pushing, { message: "Cannot go on" });
    assert.equal(server.requests.at(-1)!.method, "DELETE");
  });

  test("an aborted push ends, and tells the registry", async () => {
    await using server = await scripted();
    server.on(`PATCH ${SESSION}`, accepted(7), () => controller.abort());
    await using one = testClient();
    const controller = new AbortController();
    const options = { chunkSize: 8, signal: controller.signal };
    await assert.rejects(one.client.pushBlob(referenceTo(server, "app:x"), stream(bytes), options), {
      code: "CANCELLED",
    });
    assert.equal(methods(server), "POST PATCH PATCH DELETE");
  });

  test("a token is asked for with pull and push, and for the repository mounted from", async () => {
    await using server = await scripted();
    const { digest } = expectedOf(bytes);
    const guarded = (step: Step): Step => {
      return (request, response) => {
        if (request.headers.authorization === "Bearer good") return step(request, response);
        const scope = "repository:app:pull";
        const challenge = `Bearer realm="${server.origin}/token",service="s",scope="${scope}"`;
        return status(401, { "www-authenticate": challenge })(request, response);
      };
    };
    server.on("GET /token", status(200, {}, Buffer.from('{"token":"good","expires_in":300}')));
    server.on(`HEAD /v2/app/blobs/${digest}`, guarded(status(404)));
    server.on(`POST ${UPLOADS}`, guarded(status(201)));
    await using one = testClient();
    const options = { expected: expectedOf(bytes), mountFrom: "base/image" };
    assert.equal((await one.client.pushBlob(referenceTo(server, "app:x"), [bytes], options)).how, "mounted");
    const scopes = server.requests
      .filter((request) => request.url.startsWith("/token"))
      .map((request) => new URL(request.url, server.origin).searchParams.getAll("scope"));
    assert.deepEqual(scopes, [
      ["repository:app:pull,push"],
      ["repository:app:pull,push", "repository:base/image:pull"],
    ]);
  });

  test("a mount that is forbidden becomes an upload", async () => {
    await using server = await scripted();
    server.on(`POST ${UPLOADS}`, status(403), accepted(-1));
    await using one = testClient();
    const options = { expected: expectedOf(bytes), mountFrom: "secret" };
    assert.equal((await one.client.pushBlob(referenceTo(server, "app:x"), [bytes], options)).how, "uploaded");
    assert.equal(methods(server), "HEAD POST POST PUT");
  });

  test("an upload at another host gets the bytes and no credentials, and can't ask for any", async () => {
    await using server = await scripted();
    await using storage = await startScriptedServer();
    const authFile = join(directory, "two-hosts.json");
    const auth = Buffer.from("user:password").toString("base64");
    writeFileSync(authFile, JSON.stringify({ auths: { [server.host]: { auth }, [storage.host]: { auth } } }));
    server.on(`POST ${UPLOADS}`, (request, response) => {
      const step =
        request.headers.authorization === undefined
          ? status(401, { "www-authenticate": 'Basic realm="x"' })
          : accepted(-1, `${storage.origin}/put?signature=s`);
      step(request, response);
    });
    storage.on("PUT /put", status(201));
    await using one = testClient({ authFile });
    await one.client.pushBlob(referenceTo(server, "app:x"), [bytes], {});
    assert.equal(storage.requests.length, 1);
    assert.equal(storage.requests[0]!.headers.authorization, undefined);
    storage.on("PUT /put", status(401, { "www-authenticate": 'Basic realm="x"' }));
    await assert.rejects(one.client.pushBlob(referenceTo(server, "app:x"), [bytes], {}), { code: "PERMISSION_DENIED" });
    assert.ok(storage.requests.every((request) => request.headers.authorization === undefined));
  });

  test("an upload at no http or https URL, and pieces larger than our limit, are refused", async () => {
    await using server = await scripted();
    await using one = testClient();
    const reference = referenceTo(server, "app:x");
    for (const location of ["file:///etc/passwd", "http://user:password@host/"]) {
      server.on(`POST ${UPLOADS}`, accepted(-1, location));
      await assert.rejects(one.client.pushBlob(reference, [bytes], {}), { code: "INVALID_ARGUMENT" });
    }
    server.on(`POST ${UPLOADS}`, status(202, { location: SESSION, "oci-chunk-min-length": "999999999999" }));
    await assert.rejects(one.client.pushBlob(reference, [bytes], {}), { code: "RESOURCE_EXHAUSTED" });
    server.on(`POST ${UPLOADS}`, status(202, { location: SESSION, "oci-chunk-min-length": "15" }));
    await one.client.pushBlob(reference, stream(bytes, 1), { chunkSize: 4 });
    assert.deepEqual(
      server.requestsTo(SESSION).map((request) => request.body.length),
      [15, 5, 0],
    );
  });

  test("a registry that confirms another digest is DATA_LOSS", async () => {
    await using server = await scripted();
    server.on(`PUT ${SESSION}`, status(201, { "docker-content-digest": digestOf("other") }));
    await using one = testClient();
    await assert.rejects(one.client.pushBlob(referenceTo(server, "app:x"), [bytes], {}), { code: "DATA_LOSS" });
  });
});

test("HeldPieces cuts any stream into pieces of its size, all bytes once and in order", async () => {
  const chunks = fc.array(fc.uint8Array({ maxLength: 20 }), { maxLength: 12 });
  await fc.assert(
    fc.asyncProperty(chunks, fc.integer({ min: 1, max: 30 }), async (source, size) => {
      const seen: Uint8Array[] = [];
      await using pieces = new HeldPieces(source, size, (chunk) => void seen.push(chunk));
      const sizes: number[] = [];
      const out: Uint8Array[] = [];
      for (;;) {
        const piece = await pieces.next();
        sizes.push(piece.size);
        out.push(piece.bytes(0));
        assert.deepEqual(Buffer.from(piece.bytes(1)), Buffer.from(piece.bytes(0)).subarray(1));
        if (piece.isLast) break;
      }
      const all = Buffer.concat(source);
      assert.deepEqual(Buffer.concat(out), all);
      assert.deepEqual(Buffer.concat(seen), all);
      assert.ok(sizes.slice(0, -1).every((one) => one === size));
      assert.equal(sizes.length, Math.max(1, Math.ceil(all.length / size)));
    }),
  );
});

function manifestOver(config: Descriptor, layers: readonly Descriptor[]): Buffer {
  const plain = ({ mediaType, digest, size }: Descriptor) => ({ mediaType, digest, size });
  const document = {
    schemaVersion: 2,
    mediaType: MediaType.OCI_MANIFEST,
    config: plain(config),
    layers: layers.map(plain),
  };
  return Buffer.from(JSON.stringify(document));
}

async function pushImage(
  client: ReturnType<typeof testClient>["client"],
  reference: Reference,
  layer: Uint8Array,
): Promise<{ readonly manifest: Buffer }> {
  const diffId: Digest = digestOf(layer);
  const config = Buffer.from(
    JSON.stringify({ architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: [diffId] } }),
  );
  await client.pushBlob(reference, stream(layer), { chunkSize: CHUNK });
  await client.pushBlob(reference, [config], { expected: expectedOf(config) });
  const manifest = manifestOver(descriptorFor(config, MediaType.OCI_CONFIG), [
    descriptorFor(layer, MediaType.OCI_LAYER),
  ]);
  await client.pushManifest(reference, { bytes: manifest, mediaType: MediaType.OCI_MANIFEST });
  return { manifest };
}

/** A way to `host` on which no piece of an upload passes. */
async function refusingGate(host: string): Promise<AsyncDisposable & { readonly host: string; refused(): number }> {
  let refused = 0;
  const server = createHttpServer((request, response) => {
    if (request.method === "PATCH" && request.headers["content-range"] !== undefined) {
      refused++;
      request.resume();
      response.writeHead(405).end();
      return;
    }
    const [hostname, port] = host.split(":");
    const { method, url, headers } = request;
    const onward = httpRequest({ hostname, port, method, path: url, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
    request.pipe(onward);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    refused: () => refused,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await once(server, "close");
    },
  };
}

/** A way to `host` whose first connection to carry `limit` bytes breaks there, once. */
async function breakingLine(
  host: string,
  limit: number,
): Promise<AsyncDisposable & { readonly host: string; broken(): number }> {
  let carried = 0;
  let broken = 0;
  const sockets = new Set<{ destroy(): unknown }>();
  const server: Server = createServer((near) => {
    const far = connect(Number(host.split(":")[1]), "127.0.0.1");
    sockets.add(near).add(far);
    for (const socket of [near, far]) socket.on("error", () => far.destroy());
    near.on("data", (chunk) => {
      carried += chunk.length;
      if (broken === 0 && carried > limit) {
        broken++;
        near.resetAndDestroy();
        far.destroy();
      } else far.write(chunk);
    });
    near.on("end", () => far.end());
    far.pipe(near);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    broken: () => broken,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy();
      server.close();
      await once(server, "close");
    },
  };
}
