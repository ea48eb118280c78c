import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { type AddressInfo, connect, type Socket } from "node:net";
import { join } from "node:path";
import { before, test } from "node:test";
import { inspect } from "node:util";
import { ShaleError } from "../errors/index.ts";
import { type Digest, digestOf, MAX_MANIFEST_SIZE, MediaType, parseReference, type Reference } from "../oci/index.ts";
import { RegistryClient } from "./index.ts";
import {
  CONFIG_TYPE,
  collect,
  descriptorOf,
  FAST_RETRY,
  manifestOf,
  referenceTo,
  someBytes,
  temporaryDirectory,
  testClient,
} from "./testing/fixtures.ts";
import {
  breakAfter,
  guarded,
  ok,
  ranges,
  redirect,
  type ScriptedServer,
  type ServerTls,
  silence,
  startScriptedServer,
  status,
} from "./testing/scripted-server.ts";

const CONTENT = someBytes(100_000);
const CONFIG = Buffer.from("{}");

/** Puts an image "a:1" with one layer. */
function putImage(server: ScriptedServer) {
  const layer = server.blob("a", CONTENT);
  const config = server.blob("a", CONFIG, CONFIG_TYPE);
  return { layer, config, manifest: server.manifest("a", "1", manifestOf(config, [layer])) };
}

/** hosts.toml of a registry that exists nowhere, so that only the hosts in the file answer. */
function hostsDirectory(registry: string, text: string) {
  const directory = temporaryDirectory();
  mkdirSync(join(directory.path, registry));
  writeFileSync(join(directory.path, registry, "hosts.toml"), text);
  return directory;
}

test("resolve() gives descriptor and verified bytes by tag and by digest", async () => {
  await using server = await startScriptedServer();
  await using one = testClient();
  const { manifest, config } = putImage(server);
  for (const rest of ["a:1", `a@${manifest.digest}`, `a:other@${manifest.digest}`]) {
    const { descriptor, bytes } = await one.client.resolve(referenceTo(server, rest));
    assert.deepEqual(descriptor, descriptorOf({ ...manifest, mediaType: MediaType.OCI_MANIFEST }));
    assert.deepEqual(bytes, manifest.bytes);
  }
  const [first] = server.requests;
  for (const type of [MediaType.OCI_INDEX, MediaType.DOCKER_LIST, MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST]) {
    assert.ok(first!.headers.accept!.includes(type));
  }
  const reference = referenceTo(server, "a:1");
  assert.deepEqual(await one.client.fetchManifest(reference, descriptorOf(manifest)), manifest.bytes);
  assert.deepEqual(await one.client.fetchConfig(reference, descriptorOf(config)), CONFIG);
});

test("resolve() verifies sha512 too, and names content by what the reference says", async () => {
  await using server = await startScriptedServer();
  await using one = testClient();
  const { manifest } = putImage(server);
  const digest = digestOf(manifest.bytes, "sha512");
  server.on(`GET /v2/a/manifests/${digest}`, ok(manifest.bytes));
  assert.equal((await one.client.resolve(referenceTo(server, `a@${digest}`))).descriptor.digest, digest);
  server.on("GET /v2/a/manifests/1", ok(manifest.bytes, { "docker-content-digest": digest }));
  assert.equal((await one.client.resolve(referenceTo(server, "a:1"))).descriptor.digest, manifest.digest);
  server.on(`GET /v2/a/manifests/${digest}`, ok(Buffer.from("{}")));
  await assert.rejects(one.client.resolve(referenceTo(server, `a@${digest}`)), { code: "DATA_LOSS" });
});

test("resolve() and fetch refuse what is not what it should be", async () => {
  await using server = await startScriptedServer();
  await using one = testClient();
  const { manifest, config } = putImage(server);
  const reference = referenceTo(server, "a:1");
  const other = digestOf("other");
  const cases: readonly (readonly [ReturnType<typeof ok>, string, RegExp])[] = [
    [ok(manifest.bytes, { "docker-content-digest": other }), "DATA_LOSS", /not what its digest says/],
    [
      ok(Buffer.alloc(MAX_MANIFEST_SIZE + 1, 32)),
      "RESOURCE_EXHAUSTED",
      /the manifest is over the limit of 4194304 bytes/,
    ],
    [status(200, {}, Buffer.alloc(MAX_MANIFEST_SIZE + 1, 32)), "RESOURCE_EXHAUSTED", /the manifest is over the limit/],
    [ok(Buffer.from("<html>")), "INVALID_ARGUMENT", /Cannot read manifest: document: is not JSON/],
    [ok(Buffer.from('{"schemaVersion":1,"fsLayers":[]}')), "UNIMPLEMENTED", /Docker schema 1/],
    [ok(manifest.bytes, { "content-type": MediaType.OCI_INDEX }), "INVALID_ARGUMENT", /contradicts/],
    [ok(manifest.bytes, { "content-encoding": "gzip" }), "INVALID_ARGUMENT", /Content-Encoding gzip/],
    [status(404), "NOT_FOUND", /^Cannot resolve 127.0.0.1:\d+\/a:1: 127.0.0.1:\d+: it is not there \(HTTP 404\)$/],
    [status(401), "UNAUTHENTICATED", /access is refused \(HTTP 401\)/],
    [status(403), "PERMISSION_DENIED", /access is denied/],
    [status(418), "INVALID_ARGUMENT", /HTTP 418/],
    [status(429, { "retry-after": "99999" }), "RESOURCE_EXHAUSTED", /fewer requests/],
    [redirect("http://"), "INVALID_ARGUMENT", /redirect/],
  ];
  for (const [step, code, message] of cases) {
    server.on("GET /v2/a/manifests/1", step);
    const already = server.requests.length;
    await assert.rejects(one.client.resolve(reference), (error) => {
      assert.ok(ShaleError.is(error, code as ShaleError["code"]), String(error));
      assert.match(error.message, message);
      return true;
    });
    assert.equal(server.requests.length, already + 1, `asked once: ${message}`);
  }
  server.on(`GET /v2/a/blobs/${config.digest}`, ok(Buffer.from("[]")));
  await assert.rejects(one.client.fetchConfig(reference, descriptorOf(config)), { code: "DATA_LOSS" });
  for (const content of ["{", "{}}"]) {
    server.on(`GET /v2/a/blobs/${config.digest}`, status(200, {}, content));
    await assert.rejects(one.client.fetchConfig(reference, descriptorOf(config)), { code: "DATA_LOSS" });
  }
  const huge = { ...descriptorOf(config), size: 1e9 };
  const asked = server.requests.length;
  await assert.rejects(one.client.fetchConfig(reference, huge), { code: "RESOURCE_EXHAUSTED" });
  await assert.rejects(one.client.fetchManifest(reference, huge), { code: "RESOURCE_EXHAUSTED" });
  assert.equal(server.requests.length, asked);
});

test("resolve() tries again after 5xx, 429, resets and silence", async () => {
  await using server = await startScriptedServer();
  await using one = testClient({ stallTimeoutMs: 100 });
  const { manifest } = putImage(server);
  const answer = ok(manifest.bytes);
  const steps = [status(503), status(429, { "retry-after": "0" }), breakAfter(manifest.bytes, 10), silence(), answer];
  server.on("GET /v2/a/manifests/1", ...steps);
  const { descriptor } = await one.client.resolve(referenceTo(server, "a:1"));
  assert.equal(descriptor.digest, manifest.digest);
  assert.equal(one.events.filter((event) => event.kind === "retry").length, 4);
});

test("a registry that does not answer is UNAVAILABLE, with its name and the reason", async () => {
  const server = await startScriptedServer();
  const reference = referenceTo(server, "a:1");
  await server[Symbol.asyncDispose]();
  await using one = testClient({ retry: { attempts: 2 } });
  await assert.rejects(one.client.resolve(reference), (error) => {
    assert.ok(ShaleError.is(error, "UNAVAILABLE"));
    assert.match(error.message, /^Cannot resolve 127\.0\.0\.1:\d+\/a:1: 127\.0\.0\.1:\d+: connection refused$/);
    return true;
  });
});

test("every call ends with CANCELLED when its signal is aborted, before and during", async () => {
  await using server = await startScriptedServer();
  await using one = testClient({ stallTimeoutMs: 60_000 });
  const reference = referenceTo(server, "a:1");
  const descriptor = descriptorOf({ mediaType: "x/y", digest: digestOf("x"), size: 1, bytes: CONTENT });
  const path = `/v2/a/blobs/${descriptor.digest}`;
  for (const route of [path, `/v2/a/manifests/${descriptor.digest}`, "/v2/a/manifests/1"])
    server.on(`GET ${route}`, silence());
  const { client } = one;
  const calls: readonly ((signal: AbortSignal) => Promise<unknown>)[] = [
    (signal) => client.resolve(reference, { signal }),
    (signal) => client.fetchManifest(reference, descriptor, { signal }),
    (signal) => client.fetchConfig(reference, descriptor, { signal }),
    (signal) => client.fetchSmallBlob(reference, descriptor, { signal, limit: 10 }),
    (signal) => collect(client.openBlob(reference, descriptor, { signal })),
  ];
  for (const call of calls) {
    const asked = server.requests.length;
    await assert.rejects(call(AbortSignal.abort()), { code: "CANCELLED" });
    assert.equal(server.requests.length, asked);
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 20);
    await assert.rejects(call(abort.signal), { code: "CANCELLED" });
  }
  // also while waiting for the next attempt
  await using patient = testClient({ retry: { baseMs: 60_000, maxMs: 60_000 } });
  server.on("GET /v2/a/manifests/1", status(503));
  await assert.rejects(patient.client.resolve(reference, { signal: AbortSignal.timeout(50) }), { code: "CANCELLED" });
});

test("mirrors are asked in order with ns=, and the registry when they fail", async () => {
  await using mirror = await startScriptedServer();
  await using upstream = await startScriptedServer();
  const down = await startScriptedServer();
  await down[Symbol.asyncDispose]();
  const { manifest, layer } = putImage(upstream);
  putImage(mirror);
  const toml = `server = "${upstream.origin}"\n[host."${down.origin}"]\n[host."${mirror.origin}"]\ncapabilities = ["pull"]\n`;
  using directory = hostsDirectory("made.up", toml);
  await using one = testClient({ hostsDirs: [directory.path] });
  const reference = parseReference("made.up/a:1");

  assert.equal((await one.client.resolve(reference)).descriptor.digest, manifest.digest);
  assert.equal(mirror.requests.length, 0, "a host without resolve does not resolve tags");
  assert.ok((await collect(one.client.openBlob(reference, descriptorOf(layer)))).equals(CONTENT));
  assert.equal(mirror.requests[0]!.url, `/v2/a/blobs/${layer.digest}?ns=made.up`);
  assert.ok((await one.client.resolve({ ...reference, digest: manifest.digest as Digest })).bytes);
  assert.equal(mirror.requests.length, 2, "content by digest comes from a mirror");

  mirror.on(`GET /v2/a/blobs/${layer.digest}`, breakAfter(CONTENT, 70_000), status(500));
  assert.ok((await collect(one.client.openBlob(reference, descriptorOf(layer)))).equals(CONTENT));
  const last = upstream.requests.at(-1)!;
  assert.equal(last.headers.range, `bytes=70000-${CONTENT.length - 1}`, "the next host goes on where the mirror broke");

  // a mirror's wrong manifest is not believed; the registry's word counts
  mirror.on(`GET /v2/a/manifests/${manifest.digest}`, ok(Buffer.from("{}")));
  assert.deepEqual(await one.client.fetchManifest(reference, descriptorOf(manifest)), manifest.bytes);

  upstream.on(`GET /v2/a/blobs/${layer.digest}`, status(404));
  mirror.on(`GET /v2/a/blobs/${layer.digest}`, status(404));
  await assert.rejects(collect(one.client.openBlob(reference, descriptorOf(layer))), (error) => {
    assert.ok(ShaleError.is(error, "NOT_FOUND"));
    assert.match(
      error.message,
      /of made\.up\/a: 127.*it is not there.*; before that, .*connection refused; .*not there/,
    );
    return true;
  });
  assert.ok(
    one.events.some((event) => event.kind === "fallback" && event.host === down.host && event.to === mirror.host),
  );
});

test("configured headers go to their host only; hosts.toml can leave no host", async () => {
  await using storage = await startScriptedServer();
  await using server = await startScriptedServer();
  storage.on("GET /data", ranges(CONTENT));
  const { layer } = putImage(server);
  server.on(`GET /v2/a/blobs/${layer.digest}`, redirect(`${storage.origin}/data`));
  using directory = hostsDirectory(
    "made.up",
    `server = "${server.origin}"\ncapabilities = ["push"]\n[host."${server.origin}"]\ncapabilities = ["pull"]\nheader = { x-key = "SECRET" }`,
  );
  await using one = testClient({ hostsDirs: [directory.path] });
  const reference = parseReference("made.up/a:1");
  await collect(one.client.openBlob(reference, descriptorOf(layer)));
  assert.equal(server.requests[0]!.headers["x-key"], "SECRET");
  assert.equal(storage.requests[0]!.headers["x-key"], undefined);
  await assert.rejects(one.client.resolve(reference), { code: "FAILED_PRECONDITION" });
});

interface Proxy extends AsyncDisposable {
  readonly host: string;
  readonly asked: readonly string[];
  behave: (socket: Socket) => void;
}

/** A server of CONNECT; `behave` gets the client's socket. */
async function startProxy(): Promise<Proxy> {
  const asked: string[] = [];
  const sockets = new Set<Socket>();
  const server = createServer();
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("error", () => {}); // a client that gives up is one of the cases
  });
  server.on("connect", (request, socket) => {
    asked.push(`${request.method} ${request.url} ${request.headers["proxy-authorization"]}`);
    proxy.behave(socket as Socket);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const proxy: Proxy = {
    host: `127.0.0.1:${(server.address() as AddressInfo).port}`,
    asked,
    behave: (socket) => socket.destroy(),
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
  return proxy;
}

let tls: ServerTls;

before(() => {
  using directory = temporaryDirectory();
  const [key, cert] = [join(directory.path, "key.pem"), join(directory.path, "cert.pem")];
  const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=shale-test";
  execFileSync(
    "openssl",
    [...request.split(" "), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
    {
      stdio: "pipe",
    },
  );
  tls = { key: readFileSync(key, "utf8"), cert: readFileSync(cert, "utf8") };
});

test("https: a certificate must be trusted, by hosts.toml's ca or not at all", async () => {
  await using server = await startScriptedServer(tls);
  const { manifest } = putImage(server);
  const reference: Reference = parseReference("made.up/a:1");
  const resolveWith = async (settings: string) => {
    using directory = hostsDirectory("made.up", `server = "${server.origin}"\n${settings}`);
    writeFileSync(join(directory.path, "made.up", "ca.pem"), tls.cert);
    await using one = testClient({ hostsDirs: [directory.path], retry: { attempts: 1 } });
    return (await one.client.resolve(reference)).descriptor.digest;
  };
  await assert.rejects(resolveWith(""), (error) => {
    assert.ok(ShaleError.is(error, "FAILED_PRECONDITION"));
    assert.match(error.message, /its certificate is not trusted \(DEPTH_ZERO_SELF_SIGNED_CERT\)/);
    assert.match(error.hint ?? "", /--tls-verify=false/);
    return true;
  });
  assert.equal(await resolveWith('ca = "ca.pem"'), manifest.digest);
  assert.equal(await resolveWith("skip_verify = true"), manifest.digest);
  // loopback needs no certificate that anyone signed, as in containerd and docker
  await using one = testClient();
  assert.equal((await one.client.resolve(referenceTo(server, "a:1"))).descriptor.digest, manifest.digest);
});

test("http is tried where https does not answer: on loopback, or when the user said so; never else", async () => {
  await using server = await startScriptedServer();
  const { manifest } = putImage(server);
  const resolveWith = async (settings: string, insecure: readonly string[]) => {
    using directory = hostsDirectory("made.up", settings);
    await using one = testClient({ hostsDirs: [directory.path], insecure, retry: { attempts: 1 } });
    return (await one.client.resolve(parseReference("made.up/a:1"))).descriptor.digest;
  };
  const https = server.origin.replace("http:", "https:");
  await assert.rejects(resolveWith(`server = "${https}"`, []), (error) => {
    assert.ok(ShaleError.is(error, "UNAVAILABLE"));
    assert.match(error.message, /does not speak TLS|was broken/);
    return true;
  });
  assert.equal(server.requests.length, 0);
  // --tls-verify=false is said of the registry, not of its mirrors
  await assert.rejects(resolveWith(`server = "${https}"`, ["made.up"]), { code: "UNAVAILABLE" });
  await using one = testClient();
  assert.equal((await one.client.resolve(referenceTo(server, "a:1"))).descriptor.digest, manifest.digest);
});

test("Authorization does not go from https to http, not even on the same host name", async () => {
  await using plain = await startScriptedServer();
  await using server = await startScriptedServer(tls);
  plain.on("GET /data", ranges(CONTENT));
  const { layer } = putImage(server);
  const basic = `Basic ${Buffer.from("u:p").toString("base64")}`;
  server.on(`GET /v2/a/blobs/${layer.digest}`, guarded([basic], "Basic", redirect(`${plain.origin}/data`)));
  using directory = temporaryDirectory();
  const authFile = join(directory.path, "auth.json");
  writeFileSync(authFile, JSON.stringify({ auths: { "127.0.0.1": {}, [server.host]: { auth: basic.slice(6) } } }));
  await using one = testClient({ authFile });
  const bytes = await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(layer)));
  assert.ok(bytes.equals(CONTENT));
  assert.equal(plain.requests[0]!.headers.authorization, undefined);
  // nor does a password go to a token server without TLS
  server.on(`GET /v2/a/blobs/${layer.digest}`, guarded([], `Bearer realm="${plain.origin}/token"`, ok(CONTENT)));
  await using other = testClient({ authFile });
  await assert.rejects(collect(other.client.openBlob(referenceTo(server, "a"), descriptorOf(layer))), (error) => {
    assert.ok(ShaleError.is(error, "INVALID_ARGUMENT"));
    assert.match(error.message, /names a token server without TLS/);
    return true;
  });
  assert.equal(plain.requests.length, 1);
});

test("a proxy of the environment is used, but not for loopback; a broken one ends in an error", async () => {
  await using proxy = await startProxy();
  await using server = await startScriptedServer(tls);
  const { manifest } = putImage(server);
  const options = {
    env: { HOME: "/nonexistent", HTTPS_PROXY: `http://u:SECRET@${proxy.host}` },
    retry: { attempts: 1 },
  };
  await using direct = testClient(options);
  assert.equal((await direct.client.resolve(referenceTo(server, "a:1"))).descriptor.digest, manifest.digest);
  assert.equal(proxy.asked.length, 0);

  using directory = hostsDirectory("made.up", 'server = "https://made.up"\nskip_verify = true');
  const reference = parseReference("made.up/a:1");
  await using one = testClient({ ...options, hostsDirs: [directory.path], connectTimeoutMs: 200 });
  proxy.behave = (socket) => {
    const target = connect(Number(server.host.split(":")[1]), "127.0.0.1");
    socket.write("HTTP/1.1 200 Connection established\r\n\r\n");
    socket.pipe(target).pipe(socket);
  };
  assert.equal((await one.client.resolve(reference)).descriptor.digest, manifest.digest);
  assert.deepEqual(proxy.asked, ["CONNECT made.up:443 Basic dTpTRUNSRVQ="]);

  for (const [behave, message] of [
    [(socket: Socket) => socket.end("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"), /it refuses \(HTTP 407\)/],
    [(socket: Socket) => socket.end(), /it can't be reached/],
    [() => {}, /it does not answer/],
    [(socket: Socket) => socket.end("HTTP/1.1 200 OK\r\n\r\nnot TLS"), /does not speak TLS|failed|broken/],
  ] as const) {
    proxy.behave = behave;
    await using other = testClient({ ...options, hostsDirs: [directory.path], connectTimeoutMs: 200 });
    await assert.rejects(other.client.resolve(reference), (error) => {
      assert.ok(ShaleError.is(error, "UNAVAILABLE"), String(error));
      assert.match(error.message, message);
      assert.ok(!inspect(error, { depth: 20 }).includes("SECRET"));
      return true;
    });
  }
});

test("close() waits for what is under way, dispose breaks it; both may be called twice", async () => {
  await using server = await startScriptedServer();
  const { layer } = putImage(server);
  const options = { env: {}, hostsDirs: [], retry: { ...FAST_RETRY, attempts: 1 } };
  const first = new RegistryClient(options);
  const reading = collect(first.openBlob(referenceTo(server, "a"), descriptorOf(layer)));
  await reading;
  await first.close();
  await first.close();
  await first[Symbol.asyncDispose]();

  const second = new RegistryClient(options);
  server.on(`GET /v2/a/blobs/${layer.digest}`, silence());
  const waiting = assert.rejects(collect(second.openBlob(referenceTo(server, "a"), descriptorOf(layer))), {
    code: "UNAVAILABLE",
  });
  while (server.requestsTo(`/v2/a/blobs/${layer.digest}`).length < 2)
    await new Promise((resolve) => setTimeout(resolve, 5));
  await second[Symbol.asyncDispose]();
  await second[Symbol.asyncDispose]();
  await waiting;
});

test("importing the module does not load undici", () => {
  const script = `await import(${JSON.stringify(new URL("./index.ts", import.meta.url).href)});
    const { default: { _cache } } = await import("node:module");
    process.stdout.write(String(Object.keys(_cache).filter((path) => path.includes("undici")).length));`;
  assert.equal(execFileSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" }), "0");
});
