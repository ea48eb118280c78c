import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { FormatError, ShaleError } from "../errors/index.ts";
import { type Endpoint, hostDirectoryNames, loadEndpoints, parseHostsFile } from "./hosts.ts";
import { temporaryDirectory } from "./testing/fixtures.ts";

const RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 300);
const PEM = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

function write(directory: string, files: Readonly<Record<string, string>>): void {
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(directory, name, ".."), { recursive: true });
    writeFileSync(join(directory, name), content);
  }
}

/** "scheme://host/path flags" of each endpoint. */
function show(endpoints: readonly Endpoint[]): string[] {
  return endpoints.map((one) =>
    [
      `${one.scheme}://${one.host}${one.path}`,
      ...(one.canResolve ? ["resolve"] : []),
      ...(one.canPull ? ["pull"] : []),
      ...(one.namespace === undefined ? [] : [`ns=${one.namespace}`]),
      ...(one.tls.verify ? [] : ["unverified"]),
      ...(one.tls.ca.length === 0 ? [] : [`ca=${one.tls.ca.length}`]),
      ...(one.tls.client.length === 0 ? [] : [`client=${one.tls.client.length}`]),
      ...(one.connectTimeoutMs === undefined ? [] : [`timeout=${one.connectTimeoutMs}`]),
    ].join(" "),
  );
}

test("loadEndpoints() without configuration: https, and what containerd does on loopback", () => {
  const cases: readonly (readonly [string, boolean, string])[] = [
    ["docker.io", false, "https://registry-1.docker.io/v2 resolve pull"],
    ["quay.io", false, "https://quay.io/v2 resolve pull"],
    ["quay.io:8443", false, "https://quay.io:8443/v2 resolve pull"],
    ["localhost", false, "https://localhost/v2 resolve pull unverified"],
    ["localhost:443", false, "https://localhost:443/v2 resolve pull unverified"],
    ["localhost:80", false, "http://localhost:80/v2 resolve pull"],
    ["localhost:5000", false, "https-or-http://localhost:5000/v2 resolve pull unverified"],
    ["127.0.0.1:5000", false, "https-or-http://127.0.0.1:5000/v2 resolve pull unverified"],
    ["[::1]:5000", false, "https-or-http://[::1]:5000/v2 resolve pull unverified"],
    ["127.example.com:5000", false, "https://127.example.com:5000/v2 resolve pull"],
    ["quay.io", true, "https-or-http://quay.io/v2 resolve pull unverified"],
    ["registry:5000", true, "https-or-http://registry:5000/v2 resolve pull unverified"],
  ];
  for (const [host, insecure, expected] of cases) assert.deepEqual(show(loadEndpoints(host, [], insecure)), [expected]);
});

test("hostDirectoryNames() follows containerd's naming variants", () => {
  assert.deepEqual(hostDirectoryNames("quay.io"), ["quay.io", "_default"]);
  assert.deepEqual(hostDirectoryNames("quay.io:5000"), ["quay.io_5000_", "quay.io:5000", "_default"]);
  assert.deepEqual(hostDirectoryNames("[::1]:5000"), ["[::1]_5000_", "[::1]:5000", "_default"]);
  assert.deepEqual(hostDirectoryNames("[::1]"), ["[::1]", "_default"]);
});

test("loadEndpoints() reads hosts.toml: mirrors in the order of the file, the registry last", () => {
  using directory = temporaryDirectory();
  write(directory.path, {
    "docker.io/hosts.toml": `
server = "https://registry-1.docker.io"
[host."https://b.example"]
  capabilities = ["pull", "resolve"]
[host."http://a.example:5000"]
  capabilities = ["PULL"]
  skip_verify = true
  dial_timeout = "1m30.5s"
  [host."http://a.example:5000".header]
    x-key = "1"
    X-Many = ["1", "2"]
[host."c.example/some/path/"]
  ca = "ca.crt"
  client = [["c.cert", "c.key"], ["both.pem", "both.pem"]]
[host."https://d.example/api/v2"]
[host."https://e.example/custom"]
  override_path = true
  ca = ["ca.crt", "ca.crt"]
[host."http://plain.example"]
`,
    "docker.io/ca.crt": PEM,
    "docker.io/c.cert": PEM,
    "docker.io/c.key": PEM,
    "docker.io/both.pem": PEM,
  });
  const endpoints = loadEndpoints("docker.io", ["/nonexistent", directory.path], true);
  assert.deepEqual(show(endpoints), [
    "https://b.example/v2 resolve pull ns=docker.io",
    "https-or-http://a.example:5000/v2 pull ns=docker.io unverified timeout=90500",
    "https://c.example/some/path/v2 resolve pull ns=docker.io ca=1 client=2",
    "https://d.example/api/v2 resolve pull ns=docker.io",
    "https://e.example/custom resolve pull ns=docker.io ca=2",
    "http://plain.example/v2 resolve pull ns=docker.io",
    "https-or-http://registry-1.docker.io/v2 resolve pull unverified",
  ]);
  assert.deepEqual(endpoints[1]!.headers, { "x-key": ["1"], "x-many": ["1", "2"] });
});

test("loadEndpoints() takes the registry itself where `server` is missing, with the root table's settings", () => {
  using directory = temporaryDirectory();
  write(directory.path, {
    "quay.io/hosts.toml": `capabilities = ["pull"]\n[host."https://mirror"]\n`,
    "_default/hosts.toml": `[host."https://everything.example"]`,
    "certs.example_5000_/x.crt": PEM,
    "certs.example_5000_/one.cert": PEM,
    "certs.example_5000_/one.key": PEM,
    "certs.example_5000_/two.cert": PEM,
    "certs.example_5000_/readme": "not a certificate",
    "empty.example/hosts.toml": "",
  });
  const load = (host: string) => show(loadEndpoints(host, [directory.path], false));
  assert.deepEqual(load("quay.io"), ["https://mirror/v2 resolve pull ns=quay.io", "https://quay.io/v2 pull"]);
  assert.deepEqual(load("other.example:1"), [
    "https://everything.example/v2 resolve pull ns=other.example:1",
    "https://other.example:1/v2 resolve pull",
  ]);
  assert.deepEqual(load("certs.example:5000"), ["https://certs.example:5000/v2 resolve pull ca=1 client=2"]);
  assert.deepEqual(load("empty.example"), ["https://empty.example/v2 resolve pull"]);
});

test("loadEndpoints() names the file and the key of a mistake, never its text", () => {
  const cases: readonly (readonly [string, string])[] = [
    ['server = "x"\nheader = SECRET"', "line 2"],
    ["server = 5", "server"],
    ['server = "https://user:SECRET@x"', "server"],
    ['server = "http://[x"', "server"],
    ['[host."ftp://x"]\n[host."http:x y"]', 'host."http:x y"'],
    ['[host."https://x"]\ncapabilities = ["pulll"]', 'host."https://x".capabilities'],
    ['[host."https://x"]\ncapabilities = "pull"', 'host."https://x".capabilities'],
    ['[host."https://x"]\nskip_verify = "yes"', 'host."https://x".skip_verify'],
    ['[host."https://x"]\nca = 5', 'host."https://x".ca'],
    ['[host."https://x"]\nclient = [["a"]]', 'host."https://x".client'],
    ['[host."https://x"]\ndial_timeout = "30"', 'host."https://x".dial_timeout'],
    ['[host."https://x"]\ndial_timeout = "1s SECRET"', 'host."https://x".dial_timeout'],
    ['[host."https://x"]\nheader = "SECRET"', 'host."https://x".header'],
    ['[host."https://x".header]\na = { SECRET = 1 }', 'host."https://x".header.a'],
    ["host = 5", "host"],
  ];
  for (const [text, field] of cases) {
    assert.throws(
      () => parseHostsFile(text, "/etc/x/hosts.toml"),
      (error) => {
        assert.ok(error instanceof FormatError, text);
        assert.equal(error.field, field, text);
        assert.ok(!error.message.includes("SECRET") && error.cause === undefined, error.message);
        return true;
      },
    );
  }
  using directory = temporaryDirectory();
  write(directory.path, { "a/hosts.toml": 'ca = "key.pem"', "a/key.pem": "nothing" });
  assert.throws(
    () => loadEndpoints("a", [directory.path], false),
    (error) => ShaleError.is(error, "FAILED_PRECONDITION"),
  );
});

test("fuzz: parseHostsFile() returns entries or throws FormatError", () => {
  const line = fc.oneof(
    fc.constantFrom(
      'server = "https://x"',
      '[host."https://a"]',
      "[host.b.header]",
      'ca = ["x", 1]',
      'client = [["a", "b"]]',
      'capabilities = ["pull"]',
      "skip_verify = true",
      'dial_timeout = "5s"',
      "header = 1979-05-27",
      "override_path = 1",
    ),
    fc.string({ maxLength: 12 }),
  );
  fc.assert(
    fc.property(fc.array(line, { maxLength: 6 }), (lines) => {
      try {
        assert.ok(parseHostsFile(lines.join("\n"), "/x/hosts.toml").length >= 1);
      } catch (error) {
        assert.ok(error instanceof FormatError, String(error));
      }
    }),
    { numRuns: RUNS },
  );
});
