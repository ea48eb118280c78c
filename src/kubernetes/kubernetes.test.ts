import assert from "node:assert/strict";
import { chmodSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";
import fc from "fast-check";
import { FormatError, ShaleError } from "../errors/index.ts";
import type { Credentials } from "../registry/index.ts";
import { PullSecrets } from "./index.ts";
import { readKubeconfig } from "./kubeconfig.ts";
import { type FakeApi, startFakeApi } from "./testing/api-server.ts";

const SECRET = "correct-horse-battery";
const configFor = (host: string, password: string) => ({
  auths: { [host]: { auth: Buffer.from(`me:${password}`).toString("base64") } },
});
const certificate = { "client-certificate": "client.pem", "client-key": "client.key" };

/** Watches with short waits, but for the first list, which may take its time under load; `problems` is all that it says. */
function watch(kubeconfig: string) {
  const problems: unknown[] = [];
  const secrets = new PullSecrets({
    ...{ kubeconfig, retryMs: 5, firstListMs: 600_000 },
    onProblem: (problem) => problems.push(problem),
  });
  return {
    secrets,
    problems,
    passwords: async (host = "r.example", repository = "team/app") =>
      (await secrets.find(host, repository)).map((one: Credentials) =>
        one.kind === "password" ? one.password : one.token,
      ),
    [Symbol.asyncDispose]: () => secrets[Symbol.asyncDispose](),
  };
}

/** Until it is so; the runner's time limit ends what never comes. */
async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 5));
}

const watching = (api: FakeApi) => api.requests.filter(({ url }) => url.includes("watch=1")).length;

test("PullSecrets lists in pages, then follows what is added, changed and removed", async () => {
  await using api = await startFakeApi({ pageSize: 2 });
  for (let i = 0; i < 5; i++) api.put(`s${i}`, configFor("r.example", `p${i}`));
  api.put("other", configFor("other.example", "q"));
  await using one = watch(api.kubeconfig(certificate));
  assert.deepEqual(await one.passwords(), ["p0", "p1", "p2", "p3", "p4"]);
  assert.equal(api.requests[0]!.who, "client", "the client certificate proves who asks");
  await until(() => watching(api) === 1);
  api.put("s5", configFor("r.example/team", "p5"));
  api.put("s0", configFor("r.example", "renewed"));
  api.remove("s1");
  await until(async () => (await one.passwords()).join() === "renewed,p2,p3,p4,p5");
  assert.deepEqual(await one.passwords("r.example", "elsewhere/app"), ["renewed", "p2", "p3", "p4"]);
  assert.deepEqual(one.problems, []);
});

test("PullSecrets goes on where a watch ended, and lists anew when that version is gone", async () => {
  await using api = await startFakeApi();
  api.put("a", configFor("r.example", "a"));
  await using one = watch(api.kubeconfig(certificate));
  await until(() => watching(api) === 1);
  const lists = () => api.requests.filter(({ url }) => !url.includes("watch=1")).length;
  assert.equal(lists(), 1);
  api.expire();
  await until(() => lists() === 2 && watching(api) === 2);
  api.put("b", configFor("r.example", "b"));
  await until(async () => (await one.passwords()).join() === "a,b");
});

const USERS: Readonly<Record<string, (api: FakeApi) => object>> = {
  "a token": () => ({ token: SECRET }),
  "a token file": (api) => {
    writeFileSync(join(api.directory, "token"), `${SECRET}\n`);
    return { tokenFile: "token", token: "outdated" };
  },
  "data in base64": (api) => ({
    "client-certificate-data": Buffer.from(api.clientCert).toString("base64"),
    "client-key-data": Buffer.from(api.clientKey).toString("base64"),
  }),
  "a user and a password": () => ({ username: "me", password: SECRET }),
  "a plugin": (api) => {
    const status = { token: SECRET, expirationTimestamp: new Date(Date.now() + 3_600_000).toISOString() };
    const script = `#!/bin/sh\n[ "$WHO" = me ] && [ "$1" = give ] && echo '${JSON.stringify({ status })}'\n`;
    writeFileSync(join(api.directory, "plugin.sh"), script);
    chmodSync(join(api.directory, "plugin.sh"), 0o755);
    const apiVersion = "client.authentication.k8s.io/v1";
    return { exec: { apiVersion, command: "./plugin.sh", args: ["give"], env: [{ name: "WHO", value: "me" }] } };
  },
};
for (const [name, userOf] of Object.entries(USERS)) {
  test(`PullSecrets proves who asks by ${name}, and says nothing secret`, async () => {
    await using api = await startFakeApi();
    api.accepted.add(`Bearer ${SECRET}`);
    api.accepted.add(`Basic ${Buffer.from(`me:${SECRET}`).toString("base64")}`);
    api.put("a", configFor("r.example", "a"));
    await using one = watch(api.kubeconfig(userOf(api)));
    assert.deepEqual(await one.passwords(), ["a"]);
    api.fault = (_, response) => void response.writeHead(500).end(SECRET);
    api.endWatches();
    api.expire();
    assertSilent(one.problems);
  });
}

test("PullSecrets uses a token that is renewed in its file, and keeps what it knew until then", async () => {
  await using api = await startFakeApi();
  const file = join(api.directory, "token");
  writeFileSync(file, "first");
  api.accepted.add("Bearer first");
  api.put("a", configFor("r.example", "a"));
  await using one = watch(api.kubeconfig({ tokenFile: "token" }));
  await until(() => watching(api) === 1);
  api.accepted.clear();
  api.expire();
  await until(() => one.problems.some((problem) => ShaleError.is(problem, "UNAUTHENTICATED")));
  assert.deepEqual(await one.passwords(), ["a"]);
  api.accepted.add(`Bearer ${SECRET}`);
  writeFileSync(file, SECRET);
  await until(() => watching(api) === 2);
  assertSilent(one.problems);
});

test("PullSecrets says once what is wrong, and answers without secrets meanwhile", async () => {
  await using api = await startFakeApi();
  const asked = () => api.requests.length;
  await using one = watch(api.kubeconfig({ token: "not-let-in" }));
  assert.deepEqual(await one.passwords(), []);
  await until(() => asked() > 5);
  assert.equal(one.problems.length, 1);
  assert.match(String(one.problems[0]), /HTTP 401/);
});

test("PullSecrets trusts the kubeconfig's authority and nobody else", async () => {
  await using api = await startFakeApi();
  api.put("a", configFor("r.example", "a"));
  await using stranger = watch(api.kubeconfig(certificate, {}));
  assert.deepEqual(await stranger.passwords(), []);
  assert.ok(ShaleError.is(stranger.problems[0], "UNAVAILABLE"));
  await using named = watch(
    api.kubeconfig(certificate, { "certificate-authority": "ca.pem", "tls-server-name": "wrong.example" }),
  );
  assert.deepEqual(await named.passwords(), []);
  await using careless = watch(api.kubeconfig(certificate, { "insecure-skip-tls-verify": true }));
  assert.deepEqual(await careless.passwords(), ["a"]);
});

test("PullSecrets passes over secrets that it can't read, and runs no helper that one names", async () => {
  await using api = await startFakeApi();
  api.put("broken", undefined, { raw: Buffer.from(`{"auths": ${SECRET}`).toString("base64") });
  api.put("shape", { auths: { "r.example": { auth: 7 } } });
  api.put("helper", { credsStore: "evil", credHelpers: { "r.example": "evil" } });
  api.put("type", configFor("r.example", "of another type"), { type: "Opaque" });
  api.put("empty", undefined, { raw: "" });
  api.put("good", configFor("r.example", "good"));
  await using one = watch(api.kubeconfig(certificate));
  assert.deepEqual(await one.passwords(), ["good"]);
  assert.equal(one.problems.length, 2);
  assertSilent(one.problems);
});

test("PullSecrets survives whatever a server answers", async () => {
  await using api = await startFakeApi();
  api.put("a", configFor("r.example", "a"));
  const faults: NonNullable<FakeApi["fault"]>[] = [
    (_, response) => void response.writeHead(200).end("<html>"),
    (_, response) => void response.writeHead(200).end("null"),
    (_, response) => void response.writeHead(200).end('{"items": [null, 7, {"metadata": null}]}'),
    (request) => void request.socket.destroy(),
    (_, response) => void response.writeHead(302, { location: "https://127.0.0.1:1/" }).end(),
    (_, response) => void response.writeHead(403).end(),
  ];
  api.fault = faults[0];
  await using one = watch(api.kubeconfig(certificate));
  for (const fault of faults) {
    api.fault = fault;
    const before = api.requests.length;
    // A list that is empty begins a watch, which answers the same: either way it asks again.
    api.expire();
    await until(() => api.requests.length > before + 1);
  }
  api.fault = undefined;
  await until(async () => (await one.passwords()).join() === "a");
});

test("readKubeconfig() names file and field, and never a value", async () => {
  await using api = await startFakeApi();
  const base = {
    "current-context": "t",
    contexts: [{ name: "t", context: { cluster: "c", user: "u" } }],
    clusters: [{ name: "c", cluster: { server: "https://h" } }],
    users: [{ name: "u", user: { token: SECRET } }],
  };
  const cases: readonly (readonly [RegExp, string])[] = [
    [/document/, `a: [${SECRET}`],
    [/document/, SECRET],
    [/current-context/, JSON.stringify({ ...base, "current-context": undefined })],
    [/contexts/, JSON.stringify({ ...base, "current-context": SECRET })],
    [/clusters/, JSON.stringify({ ...base, clusters: [] })],
    [/server/, JSON.stringify({ ...base, clusters: [{ name: "c", cluster: { server: `http://${SECRET}` } }] })],
    [/token/, JSON.stringify({ ...base, users: [{ name: "u", user: { token: `${SECRET}\n${SECRET}` } }] })],
    [/token/, JSON.stringify({ ...base, users: [{ name: "u", user: { token: [SECRET] } }] })],
    [/key/, JSON.stringify({ ...base, users: [{ name: "u", user: { "client-key-data": SECRET } }] })],
    [/apiVersion/, JSON.stringify({ ...base, users: [{ name: "u", user: { exec: { apiVersion: SECRET } } }] })],
    [
      /proxy-url/,
      JSON.stringify({ ...base, clusters: [{ name: "c", cluster: { server: "https://h", "proxy-url": SECRET } }] }),
    ],
  ];
  const path = join(api.directory, "broken");
  for (const [field, text] of cases) {
    writeFileSync(path, text);
    assert.throws(
      () => readKubeconfig(path),
      (error) => {
        assert.ok(error instanceof FormatError && field.test(error.message), String(error));
        assert.ok(!inspect(error, { showHidden: true, depth: 9 }).includes(SECRET), inspect(error));
        return true;
      },
    );
  }
  writeFileSync(path, JSON.stringify(base));
  assert.equal(readKubeconfig(path).user.authorization, `Bearer ${SECRET}`);
});

test("readKubeconfig() returns or throws an error of its own, whatever the file holds", async () => {
  await using api = await startFakeApi();
  const path = join(api.directory, "fuzz");
  const text = JSON.stringify(
    { a: 1, users: [{ name: "u", user: { token: "x" } }], contexts: [], clusters: {} },
    undefined,
    1,
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.json(),
        fc.string(),
        fc.nat(text.length).map((at) => text.slice(0, at) + text.slice(at + 1)),
        fc.constantFrom("*!", "a: &a [1]\nb: [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]"), // aliases: none, and too many
      ),
      (content) => {
        writeFileSync(path, content);
        try {
          readKubeconfig(path);
        } catch (error) {
          assert.ok(error instanceof FormatError, String(error));
        }
      },
    ),
    { numRuns: 200 },
  );
});

function assertSilent(problems: readonly unknown[]): void {
  const said = inspect(problems, { depth: 20, showHidden: true, maxStringLength: null });
  assert.ok(!said.includes(SECRET) && !said.includes(Buffer.from(SECRET).toString("base64").slice(0, 20)), said);
}
