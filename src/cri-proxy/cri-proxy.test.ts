import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";
import { ShaleError } from "../errors/index.ts";
import { type CallRecord, type Handlers, loadService, type Method, RpcClient, RpcServer } from "../rpc/index.ts";
import { type AuthConfig, PullCredentials, serveImageService } from "./index.ts";
import { PATIENT } from "../rpc/testing/patient.ts";

interface PullRequest {
  readonly image: { readonly image: string } | null;
  readonly auth: Partial<AuthConfig> | null;
}
type Pull = Method<PullRequest, { readonly imageRef: string }, "none">;

const { PullImage } = loadService<{ PullImage: Pull }>(
  [new URL("image-service.proto", import.meta.url)],
  "runtime.v1.ImageService",
  { PullImage: "none" },
);
type Bytes = { readonly bytes: Uint8Array };
const raw = (name: string): Method<Bytes, Bytes, "none"> => ({
  service: "runtime.v1.ImageService",
  name,
  path: `/runtime.v1.ImageService/${name}`,
  stream: "none",
  encodeRequest: ({ bytes }) => Buffer.from(bytes!),
  decodeRequest: (bytes) => ({ bytes }),
  encodeResponse: ({ bytes }) => Buffer.from(bytes!),
  decodeResponse: (bytes) => ({ bytes }),
});

/** Something that answers in containerd's place, the proxy before it, and a kubelet. */
async function setUp(answer: (name: string, bytes: Uint8Array, signal: AbortSignal) => Promise<Uint8Array>) {
  const directory = mkdtempSync(join(tmpdir(), "shale-cri-"));
  const containerd = new RpcServer();
  const names = ["ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"];
  const methods = Object.fromEntries(names.map((name) => [name, raw(name)]));
  const handlers = Object.fromEntries(
    names.map((name) => [
      name,
      async (request: Bytes, call: { readonly signal: AbortSignal }) => ({
        bytes: await answer(name, request.bytes, call.signal),
      }),
    ]),
  );
  containerd.add(methods, handlers as unknown as Handlers<typeof methods>);
  await containerd.listen(join(directory, "containerd.sock"));

  const records: CallRecord[] = [];
  const problems: unknown[] = [];
  const credentials = new PullCredentials();
  const upstream = new RpcClient(join(directory, "containerd.sock"), PATIENT);
  const proxy = new RpcServer({ observe: (record) => records.push(record) });
  serveImageService(proxy, {
    containerd: upstream,
    credentials,
    onProblem: (image, error) => problems.push({ image, error }),
  });
  await proxy.listen(join(directory, "proxy.sock"));
  const kubelet = new RpcClient(join(directory, "proxy.sock"), PATIENT);
  return {
    credentials,
    kubelet,
    records,
    problems,
    async [Symbol.asyncDispose]() {
      kubelet[Symbol.dispose]();
      await proxy.close(0);
      upstream[Symbol.dispose]();
      await containerd.close(0);
      rmSync(directory, { recursive: true });
    },
  };
}

const SECRET = "correct-horse-battery";

test("serveImageService() passes every method on, byte by byte, unknown fields included", async () => {
  const seen: [string, string][] = [];
  await using one = await setUp(async (name, bytes) => {
    seen.push([name, Buffer.from(bytes).toString("hex")]);
    return Buffer.concat([Buffer.from(bytes), Buffer.from("7a03616263", "hex")]); // field 15, "abc"
  });
  for (const name of ["ListImages", "ImageStatus", "RemoveImage", "ImageFsInfo", "PullImage"]) {
    const request = Buffer.from("fa7f0568656c6c6f", "hex"); // field 2047, "hello"
    const { bytes } = await one.kubelet.unary(raw(name), { bytes: request });
    assert.equal(Buffer.from(bytes).toString("hex"), "fa7f0568656c6c6f7a03616263");
    assert.deepEqual(seen.pop(), [name, "fa7f0568656c6c6f"]);
  }
});

test("serveImageService() keeps the codes and messages of containerd", async () => {
  await using one = await setUp(() => Promise.reject(new ShaleError("NOT_FOUND", "no such image")));
  await assert.rejects(one.kubelet.unary(raw("ImageStatus"), { bytes: new Uint8Array() }), {
    code: "NOT_FOUND",
    message: /no such image/,
  });
});

test("serveImageService() cancels at containerd what kubelet cancels", async () => {
  const asked = Promise.withResolvers<void>();
  const stopped = Promise.withResolvers<void>();
  await using one = await setUp((_, __, signal) => {
    signal.addEventListener("abort", () => stopped.resolve(), { once: true });
    asked.resolve();
    return stopped.promise.then(() => new Uint8Array());
  });
  const controller = new AbortController();
  const call = one.kubelet.unary(raw("PullImage"), { bytes: new Uint8Array() }, { signal: controller.signal });
  await asked.promise;
  controller.abort();
  await assert.rejects(call, { code: "CANCELLED" });
  await stopped.promise;
});

test("credentials are known before containerd gets the call, and nothing logs them", async () => {
  let found: unknown;
  let ask = async () => {};
  await using one = await setUp(async () => {
    await ask();
    return new Uint8Array();
  });
  ask = async () => {
    found = await one.credentials.find("registry.example:5000", "team/app");
  };
  await one.kubelet.unary(PullImage, {
    image: { image: "registry.example:5000/team/app:v1" },
    auth: { username: "me", password: SECRET },
  });
  assert.deepEqual(found, [{ kind: "password", username: "me", password: SECRET }]);
  // Base64 that is no user and password: reported without it, and the call goes on.
  const broken = Buffer.from(SECRET).toString("base64");
  await one.kubelet.unary(PullImage, { image: { image: "x/y" }, auth: { auth: broken } });
  assert.equal(one.problems.length, 1);
  const said = inspect([one.records, one.problems], { depth: 20, showHidden: true, maxStringLength: null });
  for (const secret of [SECRET, broken]) assert.ok(!said.includes(secret), said);
});

const none: AuthConfig = {
  username: "",
  password: "",
  auth: "",
  serverAddress: "",
  identityToken: "",
  registryToken: "",
};
const REMEMBERED: readonly {
  readonly name: string;
  readonly image: string;
  readonly auth: Partial<AuthConfig>;
  readonly host: string;
  readonly repository: string;
  readonly found?: object;
}[] = [
  {
    name: "docker.io by its short name, under the host that serves it",
    image: "nginx",
    auth: { username: "u", password: "p" },
    host: "registry-1.docker.io",
    repository: "library/nginx",
    found: { kind: "password", username: "u", password: "p" },
  },
  {
    name: "the address that docker writes for the Hub",
    image: `docker.io/team/app@sha256:${"a".repeat(64)}`,
    auth: { username: "u", password: "p", serverAddress: "https://index.docker.io/v1/" },
    host: "registry-1.docker.io",
    repository: "team/app",
    found: { kind: "password", username: "u", password: "p" },
  },
  {
    name: "auth in base64",
    image: "r.example/a",
    auth: { auth: Buffer.from("u:p:q\0\0").toString("base64") },
    host: "r.example",
    repository: "a",
    found: { kind: "password", username: "u", password: "p:q" },
  },
  {
    name: "an identity token",
    image: "r.example/a",
    auth: { identityToken: "t" },
    host: "r.example",
    repository: "a",
    found: { kind: "identity-token", token: "t" },
  },
  {
    name: "a registry token",
    image: "r.example/a",
    auth: { registryToken: "t" },
    host: "r.example",
    repository: "a",
    found: { kind: "registry-token", token: "t" },
  },
  { name: "nothing in it", image: "r.example/a", auth: {}, host: "r.example", repository: "a" },
  {
    name: "not for another repository",
    image: "r.example/a",
    auth: { username: "u" },
    host: "r.example",
    repository: "b",
  },
  { name: "not for a mirror", image: "r.example/a", auth: { username: "u" }, host: "mirror.example", repository: "a" },
  {
    name: "for the host that it names only",
    image: "r.example/a",
    auth: { username: "u", serverAddress: "other.example" },
    host: "r.example",
    repository: "a",
  },
];
for (const { name, image, auth, host, repository, found } of REMEMBERED) {
  test(`PullCredentials remembers ${name}`, async () => {
    const credentials = new PullCredentials();
    credentials.remember(image, { ...none, ...auth });
    assert.deepEqual(await credentials.find(host, repository), found === undefined ? [] : [found]);
  });
}

test("PullCredentials: the newest pull decides, and the oldest are forgotten", async () => {
  const credentials = new PullCredentials();
  credentials.remember("r.example/a", { ...none, username: "u", password: "old" });
  credentials.remember("r.example/a", { ...none, username: "u", password: "new" });
  assert.deepEqual(await credentials.find("r.example", "a"), [{ kind: "password", username: "u", password: "new" }]);
  credentials.remember("r.example/a:v2", null);
  assert.deepEqual(await credentials.find("r.example", "a"), []);
  for (let i = 0; i <= 4096; i++) credentials.remember(`r.example/n${i}`, { ...none, username: "u" });
  assert.deepEqual(await credentials.find("r.example", "n0"), []);
  assert.equal((await credentials.find("r.example", "n4096")).length, 1);
});

test("PullCredentials refuses what can't be meant without quoting it", () => {
  const credentials = new PullCredentials();
  for (const auth of [{ auth: SECRET }, { username: SECRET.repeat(4000) }]) {
    assert.throws(
      () => credentials.remember("r.example/a", { ...none, ...auth }),
      (error) => ShaleError.is(error, "INVALID_ARGUMENT") && !inspect(error).includes(SECRET),
    );
  }
});
