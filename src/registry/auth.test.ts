import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";
import { ShaleError } from "../errors/index.ts";
import { parseChallenges } from "./challenge.ts";
import type { CredentialSource, RegistryOptions } from "./index.ts";
import {
  collect,
  descriptorOf,
  referenceTo,
  someBytes,
  type TestClient,
  temporaryDirectory,
  testClient,
} from "./testing/fixtures.ts";
import { guarded, ok, ranges, redirect, type Step, startScriptedServer, status } from "./testing/scripted-server.ts";

const CONTENT = someBytes(200_000);
const PASSWORD = "correct:horse/battery";
const BASIC = `Basic ${Buffer.from(`me:${PASSWORD}`).toString("base64")}`;

const token = (value: string, more: object = {}) => ok(Buffer.from(JSON.stringify({ token: value, ...more })));

/** A client with the given `auths` entry for a host. */
function clientWith(host: string, entry: object | undefined, options: RegistryOptions = {}): TestClient {
  const directory = temporaryDirectory();
  writeFileSync(
    join(directory.path, "config.json"),
    JSON.stringify(entry === undefined ? {} : { auths: { [host]: entry } }),
  );
  const one = testClient({ dockerConfigDir: directory.path, ...options });
  return {
    ...one,
    async [Symbol.asyncDispose]() {
      using _ = directory;
      await one[Symbol.asyncDispose]();
    },
  };
}

const passwordEntry = { auth: Buffer.from(`me:${PASSWORD}`).toString("base64") };

/** Everything that reaches people or logs. */
function assertNoSecret(one: TestClient, error: unknown, secrets: readonly string[]): void {
  const said = inspect([one.events, error], {
    depth: 20,
    maxStringLength: null,
    maxArrayLength: null,
    showHidden: true,
  });
  for (const secret of secrets) assert.ok(!said.includes(secret), `${secret} in ${said}`);
}

test("parseChallenges() reads what servers send", () => {
  const cases: readonly (readonly [readonly string[], readonly (readonly [string, object])[]])[] = [
    [['Basic realm="x"'], [["basic", { realm: "x" }]]],
    [
      ['Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push"'],
      [["bearer", { realm: "https://a/token", service: "s", scope: "repository:a/b:pull,push" }]],
    ],
    [
      ['Bearer realm="a", error="invalid_token" , Basic realm=b'],
      [
        ["bearer", { realm: "a", error: "invalid_token" }],
        ["basic", { realm: "b" }],
      ],
    ],
    [
      ["Negotiate", 'Basic  realm = "q\\"uote"'],
      [
        ["negotiate", {}],
        ["basic", { realm: 'q"uote' }],
      ],
    ],
    [
      ["Negotiate YWJj=, Bearer realm=x"],
      [
        ["negotiate", {}],
        ["bearer", { realm: "x" }],
      ],
    ],
    [['BEARER REALM="x",realm="y"'], [["bearer", { realm: "x" }]]],
    [['Bearer realm="unfinished'], [["bearer", {}]]],
    [["", ",,", '="x"', 'realm="x"'], []],
    [["\u0000"], []],
  ];
  for (const [lines, expected] of cases) {
    const parsed = parseChallenges(lines).map((one) => [one.scheme, Object.fromEntries(one.parameters)]);
    assert.deepEqual(parsed, expected, lines.join(" | "));
  }
  assert.ok(Array.isArray(parseChallenges([`Bearer ${'a="b",'.repeat(10_000)}`])));
});

test("a token is fetched once for many requests, with the password, for the scope of the challenge", async () => {
  await using server = await startScriptedServer();
  await using one = clientWith(server.host, passwordEntry);
  await using _ = one;
  server.on("GET /token", token("T1", { expires_in: 300 }));
  const challenge = `Bearer realm="${server.origin}/token",service="svc",scope="repository:a:pull"`;
  const stored = server.blob("a", CONTENT, undefined, guarded(["Bearer T1"], challenge, ranges(CONTENT)));
  const read = () => collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
  const all = await Promise.all([read(), read(), read()]);
  assert.ok(all.every((bytes) => bytes.equals(CONTENT)));
  await read();
  const asked = server.requestsTo("/token");
  assert.equal(asked.length, 1);
  assert.equal(asked[0]!.headers.authorization, BASIC);
  assert.equal(asked[0]!.url, "/token?service=svc&scope=repository%3Aa%3Apull&account=me");
  // another repository of the same host is not refused first: what the host asks for is known
  const before = server.requests.length;
  server.blob("b", CONTENT, undefined, guarded(["Bearer T1"], challenge, ranges(CONTENT)));
  await collect(one.client.openBlob(referenceTo(server, "b"), descriptorOf(stored)));
  assert.deepEqual(
    server.requests.slice(before).map((request) => request.url.slice(0, 60)),
    ["/token?service=svc&scope=repository%3Ab%3Apull&account=me", `/v2/b/blobs/${stored.digest}`.slice(0, 60)],
  );
  assertNoSecret(one, undefined, [PASSWORD, BASIC.slice(6), "Bearer T1", "account=me"]);
});

test("without credentials a token is asked for anonymously", async () => {
  await using server = await startScriptedServer();
  await using one = clientWith("elsewhere.example", passwordEntry);
  await using _ = one;
  server.on("GET /token", ok(Buffer.from('{"access_token":"ANON"}')));
  const challenge = `Bearer realm="${server.origin}/token"`;
  const stored = server.blob("a/b", CONTENT, undefined, guarded(["Bearer ANON"], challenge, ranges(CONTENT)));
  await collect(one.client.openBlob(referenceTo(server, "a/b"), descriptorOf(stored)));
  const [asked] = server.requestsTo("/token");
  assert.equal(asked!.headers.authorization, undefined);
  assert.equal(asked!.url, "/token?scope=repository%3Aa%2Fb%3Apull");
});

test("a token that expires in the middle of a blob is renewed", async () => {
  await using server = await startScriptedServer();
  await using one = clientWith(server.host, passwordEntry);
  await using _ = one;
  server.on("GET /token", token("T1"), token("T2"));
  const challenge = `Bearer realm="${server.origin}/token"`;
  const broken: Step = (request, response) => {
    response.writeHead(200, { "content-length": CONTENT.length });
    response.write(CONTENT.subarray(0, 100_000), () => request.socket.resetAndDestroy());
  };
  const expired = `${challenge},error="invalid_token"`;
  const stored = server.blob(
    "a",
    CONTENT,
    undefined,
    guarded([], challenge, broken),
    guarded(["Bearer T1"], challenge, broken),
    guarded(["Bearer T2"], expired, ranges(CONTENT)),
  );
  const bytes = await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
  assert.ok(bytes.equals(CONTENT));
  assert.equal(server.requestsTo("/token").length, 2);
});

test("a token is renewed before it expires, by its expires_in", async () => {
  await using server = await startScriptedServer();
  await using one = clientWith(server.host, undefined);
  await using _ = one;
  server.on("GET /token", token("T1", { expires_in: 0.001 }), token("T2", { expires_in: 100 }));
  const challenge = `Bearer realm="${server.origin}/token"`;
  const stored = server.blob("a", CONTENT, undefined, guarded(["Bearer T1", "Bearer T2"], challenge, ranges(CONTENT)));
  const read = () => collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
  await read();
  await read();
  const used = server.requestsTo(`/v2/a/blobs/${stored.digest}`).map((request) => request.headers.authorization);
  assert.deepEqual(used, [undefined, "Bearer T1", "Bearer T2"]);
});

test("an identity token is exchanged by POST, as oauth.md says", async () => {
  await using server = await startScriptedServer();
  await using one = clientWith(server.host, { identitytoken: "IDENTITY" });
  await using _ = one;
  server.on("POST /token", ok(Buffer.from('{"access_token":"T"}')));
  const challenge = `Bearer realm="${server.origin}/token",service="s&s"`;
  const stored = server.blob("a", CONTENT, undefined, guarded(["Bearer T"], challenge, ranges(CONTENT)));
  await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
  const [asked] = server.requestsTo("/token");
  assert.equal(asked!.headers["content-type"], "application/x-www-form-urlencoded");
  assert.deepEqual(Object.fromEntries(new URLSearchParams(asked!.body)), {
    service: "s&s",
    grant_type: "refresh_token",
    client_id: "shale",
    refresh_token: "IDENTITY",
    scope: "repository:a:pull",
  });
  assertNoSecret(one, undefined, ["IDENTITY"]);
});

test("basic authentication and registry tokens are sent as they are", async () => {
  for (const [entry, header] of [
    [passwordEntry, BASIC],
    [{ registrytoken: "RT" }, "Bearer RT"],
  ] as const) {
    await using server = await startScriptedServer();
    await using one = clientWith(server.host, entry);
    await using _ = one;
    const stored = server.blob("a", CONTENT, undefined, guarded([header], 'Basic realm="x"', ranges(CONTENT)));
    const bytes = await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
    assert.ok(bytes.equals(CONTENT));
  }
});

test("refusals are UNAUTHENTICATED or PERMISSION_DENIED, say what to do, and end", async () => {
  await using stranger = await startScriptedServer();
  const cases: Readonly<
    Record<string, { entry?: object; challenge: string; token?: Step; code: string; message: RegExp; requests: number }>
  > = {
    "a login that is missing": {
      challenge: 'Basic realm="x"',
      code: "UNAUTHENTICATED",
      message: /it asks for a login/,
      requests: 1,
    },
    "a password that is refused": {
      entry: passwordEntry,
      challenge: 'Basic realm="x"',
      code: "UNAUTHENTICATED",
      message: /it does not accept the credentials/,
      requests: 2,
    },
    "a password that the token server refuses": {
      entry: passwordEntry,
      challenge: 'Bearer realm="ORIGIN/token"',
      token: status(401),
      code: "UNAUTHENTICATED",
      message: /does not accept the credentials \(HTTP 401\)/,
      requests: 2,
    },
    "no anonymous token": {
      challenge: 'Bearer realm="ORIGIN/token"',
      token: status(403),
      code: "UNAUTHENTICATED",
      message: /gives no anonymous access/,
      requests: 2,
    },
    "a token that is refused again and again": {
      challenge: 'Bearer realm="ORIGIN/token"',
      token: token("X"),
      code: "UNAUTHENTICATED",
      message: /does not accept|access is refused/,
      requests: 4,
    },
    "a token server that is no URL": {
      entry: passwordEntry,
      challenge: 'Bearer realm="/token"',
      code: "INVALID_ARGUMENT",
      message: /names a token server that is not a plain http or https URL/,
      requests: 1,
    },
    "a token server with another scheme": {
      entry: passwordEntry,
      challenge: 'Bearer realm="file:///etc/passwd"',
      code: "INVALID_ARGUMENT",
      message: /not a plain http or https URL/,
      requests: 1,
    },
    "a token server with a password": {
      entry: passwordEntry,
      challenge: 'Bearer realm="http://u:hunter2@127.0.0.1/"',
      code: "INVALID_ARGUMENT",
      message: /not a plain http or https URL/,
      requests: 1,
    },
    "an answer without token": {
      challenge: 'Bearer realm="ORIGIN/token"',
      token: ok(Buffer.from('{"token":"a\\r\\nb: c"}')),
      code: "INVALID_ARGUMENT",
      message: /has no usable token/,
      requests: 2,
    },
    "an answer that is not JSON and has the token": {
      entry: passwordEntry,
      challenge: 'Bearer realm="ORIGIN/token"',
      token: ok(Buffer.from(`oops ${BASIC}`)),
      code: "INVALID_ARGUMENT",
      message: /has no usable token/,
      requests: 2,
    },
    "a redirect of an identity token": {
      entry: { identitytoken: "IDENTITY" },
      challenge: 'Bearer realm="ORIGIN/token"',
      token: redirect(`${stranger.origin}/token`),
      code: "UNAVAILABLE",
      message: /the token server .* answered HTTP 307/,
      requests: 2,
    },
    "an authentication that nobody knows": {
      entry: passwordEntry,
      challenge: "Negotiate",
      code: "UNIMPLEMENTED",
      message: /other than token and basic: negotiate/,
      requests: 1,
    },
  };
  for (const [name, one] of Object.entries(cases)) {
    await using server = await startScriptedServer();
    await using client = clientWith(server.host, one.entry);
    await using _ = client;
    for (const method of ["GET", "POST"]) server.on(`${method} /token`, one.token ?? status(500));
    const stored = server.blob(
      "a",
      CONTENT,
      undefined,
      guarded([], one.challenge.replace("ORIGIN", server.origin), ok(CONTENT)),
    );
    await assert.rejects(collect(client.client.openBlob(referenceTo(server, "a"), descriptorOf(stored))), (error) => {
      assert.ok(ShaleError.is(error), name);
      assert.equal(error.code, one.code, name);
      assert.match(error.message, one.message, name);
      if (one.code === "UNAUTHENTICATED")
        assert.match(error.hint ?? "", new RegExp(`docker login ${server.host}`), name);
      assertNoSecret(client, error, [PASSWORD, BASIC.slice(6), "IDENTITY", "hunter2"]);
      return true;
    });
    assert.equal(server.requests.length, one.requests, name);
  }
  assert.equal(stranger.requests.length, 0);
});

test("a server that repeats the password in its message does not get it into ours", async () => {
  await using server = await startScriptedServer();
  await using one = clientWith(server.host, passwordEntry);
  await using _ = one;
  const echo = JSON.stringify({ errors: [{ code: "DENIED", message: `no ${PASSWORD} ${BASIC} \u001b[31mred` }] });
  const stored = server.blob("a", CONTENT, undefined, guarded([BASIC], "Basic", status(403, {}, echo)));
  await assert.rejects(collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored))), (error) => {
    assert.ok(ShaleError.is(error, "PERMISSION_DENIED"));
    assert.match(error.message, /HTTP 403: DENIED no \*\*\* \*\*\* +\[31mred/);
    assertNoSecret(one, error, [PASSWORD, BASIC.slice(6), "\\x1B"]);
    return true;
  });
});

test("Authorization and configured headers never follow a redirect to another host", async () => {
  await using storage = await startScriptedServer();
  await using server = await startScriptedServer();
  using directory = temporaryDirectory();
  const file = join(directory.path, "config.json");
  writeFileSync(file, JSON.stringify({ auths: { [server.host]: passwordEntry, [storage.host]: passwordEntry } }));
  await using one = testClient({ authFile: file });
  storage.on("GET /data", ranges(CONTENT));
  const stored = server.blob(
    "a",
    CONTENT,
    undefined,
    guarded([BASIC], "Basic", redirect(`${storage.origin}/data?signature=SECRET`)),
  );
  const bytes = await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored), { offset: 10 }));
  assert.ok(bytes.equals(CONTENT.subarray(10)));
  const [request] = storage.requests;
  assert.equal(request!.headers.authorization, undefined);
  assert.equal(request!.headers.range, `bytes=10-${CONTENT.length - 1}`);
  assertNoSecret(one, undefined, ["SECRET", PASSWORD]);

  // a storage host that asks for a login gets none: nobody configured it for this registry
  storage.on("GET /data", guarded([], 'Basic realm="phishing"', ok(CONTENT)));
  await assert.rejects(collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored))), (error) => {
    assert.ok(ShaleError.is(error, "PERMISSION_DENIED"));
    assertNoSecret(one, error, ["SECRET", PASSWORD]);
    return true;
  });
  assert.ok(storage.requests.every((each) => each.headers.authorization === undefined));
});

test("an address that expired is asked for again", async () => {
  await using storage = await startScriptedServer();
  await using server = await startScriptedServer();
  await using one = testClient();
  storage.on("GET /old", status(403));
  storage.on("GET /new", ranges(CONTENT));
  const stored = server.blob(
    "a",
    CONTENT,
    undefined,
    redirect(`${storage.origin}/old`),
    redirect(`${storage.origin}/new`),
  );
  const bytes = await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
  assert.ok(bytes.equals(CONTENT));
});

/** Credentials that others than files know. */
function source(list: readonly (readonly [user: string, password: string])[]): CredentialSource {
  return { find: async () => list.map(([username, password]) => ({ kind: "password", username, password })) };
}

const basicOf = (user: string, password: string) => `Basic ${Buffer.from(`${user}:${password}`).toString("base64")}`;

test("credentials of sources are tried in turn, whether the token server refuses them or the registry", async () => {
  for (const refusesAt of ["token server", "registry", "basic"] as const) {
    await using server = await startScriptedServer();
    const people = ["a", "b", "c"].map((user) => [user, `secret-of-${user}`] as const);
    await using one = clientWith(server.host, undefined, { credentials: [source(people)] });
    const right = basicOf("c", "secret-of-c");
    server.on("GET /token", (request, response) => {
      const accepted = request.headers.authorization === right;
      if (refusesAt === "token server" && !accepted) return status(401)(request, response);
      token(accepted ? "RIGHT" : "WRONG", { expires_in: 300 })(request, response);
    });
    const challenge = refusesAt === "basic" ? 'Basic realm="x"' : `Bearer realm="${server.origin}/token"`;
    const accepted = refusesAt === "basic" ? right : "Bearer RIGHT";
    const stored = server.blob("a", CONTENT, undefined, guarded([accepted], challenge, ranges(CONTENT)));
    for (let round = 0; round < 2; round++) {
      const bytes = await collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
      assert.ok(bytes.equals(CONTENT), refusesAt);
    }
    const tokens = server.requestsTo("/token").length;
    assert.equal(tokens, refusesAt === "basic" ? 0 : 3, "what was refused is not tried for the second blob");
    assertNoSecret(
      one,
      undefined,
      people.flatMap(([user, password]) => [password, basicOf(user, password)]),
    );
  }
});

test("when all credentials are refused the call ends, and the next one asks the sources anew", async () => {
  await using server = await startScriptedServer();
  const people: [string, string][] = [
    ["a", "old"],
    ["b", "old"],
  ];
  await using one = clientWith(server.host, undefined, { credentials: [source(people)] });
  const right = basicOf("b", "renewed");
  const stored = server.blob("a", CONTENT, undefined, guarded([right], 'Basic realm="x"', ranges(CONTENT)));
  const read = () => collect(one.client.openBlob(referenceTo(server, "a"), descriptorOf(stored)));
  await assert.rejects(read(), { code: "UNAUTHENTICATED", message: /it does not accept the credentials/ });
  people[1] = ["b", "renewed"];
  assert.ok((await read()).equals(CONTENT));
});
