import assert from "node:assert/strict";
import { chmodSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { FormatError, ShaleError } from "../errors/index.ts";
import { CredentialStore } from "./credentials.ts";
import { temporaryDirectory } from "./testing/fixtures.ts";

const auth = (text: string) => ({ auth: Buffer.from(text).toString("base64") });
const password = (username: string, secret: string) => ({ kind: "password", username, password: secret });

/** A store over `files` (paths below the directory) with the environment that names the directory. */
function storeOf(directory: string, files: Readonly<Record<string, unknown>>, env: NodeJS.ProcessEnv = {}) {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(directory, name, ".."), { recursive: true });
    writeFileSync(join(directory, name), typeof content === "string" ? content : JSON.stringify(content));
  }
  const problems: string[] = [];
  const store = new CredentialStore({
    env: { HOME: directory, XDG_RUNTIME_DIR: join(directory, "run"), PATH: `${directory}:${process.env.PATH}`, ...env },
    onProblem: (problem) => problems.push(problem),
  });
  return { store, problems };
}

test("CredentialStore.find() takes the most specific entry of a file", async () => {
  using directory = temporaryDirectory();
  const { store } = storeOf(directory.path, {
    ".docker/config.json": {
      auths: {
        "quay.io": auth("host:1"),
        "quay.io/org": auth("org:2"),
        "quay.io/org/app": auth("app:3"),
        "https://old.example/v1/": auth("old:4"),
        "http://plain.example": auth("plain:with:colons"),
        "https://index.docker.io/v1/": auth("hub:6"),
        "padded.example": auth("nul:7\0\0"),
        "split.example": { username: "u", password: "p" },
        "id.example": { ...auth("x:y"), identitytoken: "I" },
        "empty.example": {},
        "localhost:5000": auth("port:8"),
      },
    },
  });
  const cases: readonly (readonly [string, string, unknown])[] = [
    ["quay.io", "other/x", password("host", "1")],
    ["quay.io", "org/x", password("org", "2")],
    ["quay.io", "org/app", password("app", "3")],
    ["quay.io", "org/app/sub", password("app", "3")],
    ["quay.io", "organic/app", password("host", "1")],
    ["old.example", "x", password("old", "4")],
    ["plain.example", "x", password("plain", "with:colons")],
    ["registry-1.docker.io", "library/alpine", password("hub", "6")],
    ["padded.example", "x", password("nul", "7")],
    ["split.example", "x", password("u", "p")],
    ["id.example", "x", { kind: "identity-token", token: "I" }],
    ["empty.example", "x", undefined],
    ["localhost:5000", "x", password("port", "8")],
    ["localhost:5001", "x", undefined],
    ["localhost", "x", undefined],
    ["evil-quay.io", "x", undefined],
    ["quay.io.evil.example", "x", undefined],
  ];
  for (const [host, repository, expected] of cases) {
    assert.deepEqual(await store.find(host, repository), expected, `${host}/${repository}`);
  }
});

test("CredentialStore.find() asks files in podman's order, then docker's", async () => {
  using directory = temporaryDirectory();
  const files = {
    "run/containers/auth.json": { auths: { "a.io": auth("run:1") } },
    ".config/containers/auth.json": { auths: { "a.io": auth("config:2"), "b.io": auth("config:2") } },
    ".docker/config.json": { auths: { "b.io": auth("docker:3"), "c.io": auth("docker:3") } },
    "docker2/config.json": { auths: { "c.io": auth("docker2:4") } },
    "named.json": { auths: { "a.io": auth("named:5") } },
  };
  const users = async (env: NodeJS.ProcessEnv) => {
    const { store } = storeOf(directory.path, files, env);
    const found = await Promise.all(["a.io", "b.io", "c.io"].map((host) => store.find(host, "x")));
    return found.map((one) => (one?.kind === "password" ? one.username : undefined));
  };
  assert.deepEqual(await users({}), ["run", "config", "docker"]);
  assert.deepEqual(await users({ DOCKER_CONFIG: join(directory.path, "docker2") }), ["run", "config", "docker2"]);
  assert.deepEqual(await users({ XDG_CONFIG_HOME: "/nonexistent" }), ["run", "docker", "docker"]);
  assert.deepEqual(await users({ REGISTRY_AUTH_FILE: join(directory.path, "named.json") }), [
    "named",
    undefined,
    undefined,
  ]);
  const missing = new CredentialStore({ env: {}, authFile: join(directory.path, "nothing"), onProblem: () => {} });
  await assert.rejects(missing.find("a.io", "x"), { code: "NOT_FOUND" });
});

/** Writes docker-credential-NAME as a shell script. */
function helper(directory: string, name: string, script: string): void {
  const path = join(directory, `docker-credential-${name}`);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
}

test("CredentialStore.find() asks helpers: credHelpers, credsStore, then auths", async () => {
  using directory = temporaryDirectory();
  helper(
    directory.path,
    "one",
    `s=$(cat) && [ "$1" = get ] && echo "{\\"ServerURL\\":\\"$s\\",\\"Username\\":\\"one\\",\\"Secret\\":\\"$s\\"}"`,
  );
  helper(directory.path, "token", `echo '{"Username":"<token>","Secret":"I"}'`);
  helper(directory.path, "none", `echo "credentials not found in native keychain"; exit 1`);
  helper(directory.path, "broken", `echo "SECRET on stdout"; echo "SECRET on stderr" >&2; exit 3`);
  helper(directory.path, "garbage", `echo 'SECRET{'`);
  const { store, problems } = storeOf(directory.path, {
    ".docker/config.json": {
      credsStore: "none",
      credHelpers: {
        "one.io": "one",
        "docker.io": "one",
        "token.io": "token",
        "broken.io": "broken",
        "garbage.io": "garbage",
        "missing.io": "not-installed",
        "evil.io": "../../bin/sh",
      },
      auths: Object.fromEntries(["one.io", "plain.io", "broken.io"].map((host) => [host, auth("file:1")])),
    },
  });
  assert.deepEqual(await store.find("one.io", "x"), password("one", "one.io"));
  assert.deepEqual(await store.find("registry-1.docker.io", "x"), password("one", "https://index.docker.io/v1/"));
  assert.deepEqual(await store.find("token.io", "x"), { kind: "identity-token", token: "I" });
  assert.deepEqual(await store.find("plain.io", "x"), password("file", "1"));
  assert.equal(problems.length, 0);
  assert.deepEqual(await store.find("broken.io", "x"), password("file", "1"));
  for (const host of ["garbage.io", "missing.io", "evil.io"]) assert.equal(await store.find(host, "x"), undefined);
  assert.equal(problems.length, 4);
  assert.ok(problems.every((problem) => problem.startsWith("Cannot ") && !problem.includes("SECRET")));
  const aborted = AbortSignal.abort();
  await assert.rejects(store.find("one.io", "x", aborted), { code: "CANCELLED" });
});

test("CredentialStore.find() names the place of a mistake, never its text", async () => {
  const cases: readonly (readonly [unknown, string])[] = [
    ['{"auths": {"a.io": {"auth": "SECRET" oops', "document"],
    [[], "document"],
    [{ auths: 5 }, "auths"],
    [{ auths: { "a.io": "SECRET" } }, 'auths["a.io"]'],
    [{ auths: { "a.io": { auth: ["SECRET"] } } }, 'auths["a.io"].auth'],
    [{ auths: { "a.io": { auth: "U0VDUkVU" } } }, 'auths["a.io"].auth'],
    [{ credHelpers: { "a.io": 1 } }, 'credHelpers["a.io"]'],
    [{ credsStore: {} }, "credsStore"],
  ];
  for (const [content, field] of cases) {
    using directory = temporaryDirectory();
    const { store } = storeOf(directory.path, { ".docker/config.json": content });
    await assert.rejects(store.find("a.io", "x"), (error) => {
      assert.ok(error instanceof FormatError && ShaleError.is(error, "FAILED_PRECONDITION"));
      assert.equal(error.field, field);
      assert.ok(!`${error.message} ${String(error.cause)}`.includes("SECRET"));
      return true;
    });
  }
});
