import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FormatError } from "../errors/index.ts";
import {
  endpointHost,
  formatFamiliar,
  formatImageSource,
  formatReference,
  parseImageSource,
  parseReference,
  splitHost,
} from "./index.ts";

const RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 1000);
const DIGEST = `sha256:${"0123456789abcdef".repeat(4)}`;

test("parseReference() gives the full form of what docker accepts", () => {
  const cases: readonly (readonly [string, string])[] = [
    ["alpine", "docker.io/library/alpine:latest"],
    ["alpine:3.20", "docker.io/library/alpine:3.20"],
    ["docker.io/alpine", "docker.io/library/alpine:latest"],
    ["index.docker.io/library/alpine", "docker.io/library/alpine:latest"],
    ["bitnami/nginx", "docker.io/bitnami/nginx:latest"],
    [`alpine@${DIGEST}`, `docker.io/library/alpine@${DIGEST}`],
    [`alpine:3@${DIGEST}`, `docker.io/library/alpine:3@${DIGEST}`],
    ["localhost/x", "localhost/x:latest"],
    ["localhost:5000/x/y:v1", "localhost:5000/x/y:v1"],
    ["127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"],
    ["[::1]:5000/x", "[::1]:5000/x:latest"],
    ["[2001:db8::1]/x:1", "[2001:db8::1]/x:1"],
    ["ghcr.io/org/app/sub__part.v1---x:T_a.g-1", "ghcr.io/org/app/sub__part.v1---x:T_a.g-1"],
    ["GHCR.io/x", "ghcr.io/x:latest"],
    ["registry.example.com:443/a", "registry.example.com:443/a:latest"],
    [`x:${"t".repeat(128)}`, `docker.io/library/x:${"t".repeat(128)}`],
    [`h.io/${"a".repeat(255)}`, `h.io/${"a".repeat(255)}:latest`],
  ];
  for (const [text, full] of cases) assert.equal(formatReference(parseReference(text)), full, text);
});

test("parseReference() rejects what breaks the grammar, and names the part", () => {
  const cases: readonly (readonly [string, string])[] = [
    ["", "name"],
    [":tag", "name"],
    ["Alpine", "name"],
    ["a//b", "name"],
    ["/a", "name"],
    ["a/", "name"],
    ["a..b", "name"],
    ["a___b", "name"],
    ["-a", "name"],
    ["a b", "name"],
    ["../../etc", "host"],
    ["Bitnami/nginx", "name"],
    ["h.io/../x", "name"],
    ["h.io/%2e%2e/x", "name"],
    ["a\n", "name"],
    ["é", "name"],
    ["f".repeat(64), "name"],
    [`h.io/${"a".repeat(256)}`, "name"],
    ["a:", "tag"],
    ["a:.x", "tag"],
    ["a:b:c", "tag"],
    ["a:b/c", "host"],
    [`a:${"t".repeat(129)}`, "tag"],
    ["a@", "digest"],
    ["a@sha256:12", "digest"],
    [`a@${DIGEST.toUpperCase()}`, "digest"],
    ["h.io:/a", "host"],
    ["h.io:0/a", "host"],
    ["h.io:65536/a", "host"],
    ["h.io:99999999/a", "host"],
    ["-h.io/a", "host"],
    ["user@h.io/a", "digest"],
    ["[::1/a", "host"],
    ["[1::2::3]:5/a", "host"],
    ["[12345::]:5/a", "host"],
    ["[fe80::1%eth0]:5/a", "host"],
    [`${"a.".repeat(150)}io/x`, "host"],
    ["a".repeat(1025), "length"],
  ];
  for (const [text, field] of cases) {
    assert.throws(
      () => parseReference(text),
      (error) => error instanceof FormatError && error.field === field && error.message.length < 500,
      `${text.slice(0, 80)} should fail at ${field}`,
    );
  }
});

test("formatFamiliar() shortens Docker Hub names only, and parses back", () => {
  const cases: readonly (readonly [string, string])[] = [
    ["alpine", "alpine:latest"],
    ["library/alpine:3", "alpine:3"],
    ["docker.io/library/a/b", "library/a/b:latest"],
    ["docker.io/bitnami/nginx:1", "bitnami/nginx:1"],
    ["docker.io/localhost/x", "docker.io/localhost/x:latest"],
    ["docker.io/a.b/c", "docker.io/a.b/c:latest"],
    ["quay.io/x", "quay.io/x:latest"],
  ];
  for (const [text, familiar] of cases) {
    assert.equal(formatFamiliar(parseReference(text)), familiar);
    assert.deepEqual(parseReference(familiar), parseReference(text));
  }
});

test("endpointHost() and splitHost() say where to connect", () => {
  assert.equal(endpointHost("docker.io"), "registry-1.docker.io");
  assert.equal(endpointHost("quay.io"), "quay.io");
  assert.deepEqual(splitHost("[::1]:5000"), { hostname: "::1", port: 5000 });
  assert.deepEqual(splitHost("LOCALHOST"), { hostname: "localhost" });
  assert.throws(() => splitHost("a/b"), FormatError);
});

test("parseImageSource() tells transports apart", () => {
  const reference = parseReference("alpine:3");
  assert.deepEqual(parseImageSource("alpine:3"), { kind: "registry", reference });
  assert.deepEqual(parseImageSource("docker://alpine:3"), { kind: "registry", reference });
  assert.deepEqual(parseImageSource("docker:3"), { kind: "registry", reference: parseReference("docker:3") });
  assert.deepEqual(parseImageSource("oci:/tmp/x"), { kind: "oci-layout", directory: "/tmp/x" });
  assert.deepEqual(parseImageSource("oci:dir:docker.io/library/a:1"), {
    kind: "oci-layout",
    directory: "dir",
    name: "docker.io/library/a:1",
  });
  assert.deepEqual(parseImageSource("docker-archive:/tmp/a.tar"), { kind: "docker-archive", file: "/tmp/a.tar" });
  assert.deepEqual(parseImageSource("docker-archive:a.tar:alpine:3"), {
    kind: "docker-archive",
    file: "a.tar",
    reference,
  });
  for (const text of [
    "oci:",
    "oci::x",
    "oci:dir:",
    "docker-archive:",
    "docker-daemon:alpine:3",
    "dir:/tmp",
    "docker://",
  ]) {
    assert.throws(() => parseImageSource(text), FormatError, text);
  }
  for (const text of ["oci:/tmp/x:y", "oci:/x", "docker-archive:a.tar:docker.io/library/alpine:3"]) {
    assert.equal(formatImageSource(parseImageSource(text)), text);
  }
});

test("parseReference() of formatReference() gives the same reference", () => {
  const component = fc.stringMatching(/^[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}$/);
  const host = fc.oneof(
    fc.constantFrom("docker.io", "localhost", "localhost:1", "[::1]", "[fe80::a:1]:65535", "10.0.0.1:5000"),
    fc.stringMatching(/^[a-z][a-z0-9]{0,8}\.(io|example\.com)(:[1-9][0-9]{0,3})?$/),
  );
  const text = fc
    .tuple(
      host,
      fc.array(component, { minLength: 1, maxLength: 4 }),
      fc.option(fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}$/)),
      fc.boolean(),
    )
    .map(
      ([h, path, tag, digest]) => `${h}/${path.join("/")}${tag === null ? "" : `:${tag}`}${digest ? `@${DIGEST}` : ""}`,
    );
  fc.assert(
    fc.property(text, (one) => {
      const reference = parseReference(one);
      assert.deepEqual(parseReference(formatReference(reference)), reference);
      assert.deepEqual(parseReference(formatFamiliar(reference)), reference);
    }),
    { numRuns: RUNS },
  );
});

test("fuzz: parseImageSource() returns a source whose text parses back, or throws FormatError", () => {
  const piece = fc.oneof(
    fc.constantFrom(
      "alpine",
      "docker.io",
      "localhost",
      "/",
      ":",
      "@",
      "oci:",
      "docker://",
      DIGEST,
      "[::1]",
      "..",
      "__",
      "A",
    ),
    fc.string({ maxLength: 6 }),
  );
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 8 }).map((parts) => parts.join("")),
      (text) => {
        let source: ReturnType<typeof parseImageSource>;
        try {
          source = parseImageSource(text);
        } catch (error) {
          assert.ok(error instanceof FormatError, String(error));
          return;
        }
        assert.deepEqual(parseImageSource(formatImageSource(source)), source);
        if (source.kind === "registry") {
          // the parts go into URLs as they are
          assert.match(`${source.reference.repository}:${source.reference.tag ?? ""}`, /^[\w./:-]+$/);
          assert.doesNotMatch(source.reference.repository, /\.\./);
        }
      },
    ),
    { numRuns: RUNS },
  );
});
