import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FormatError, ShaleError } from "../errors/index.ts";
import {
  checkLayerCount,
  choosePlatform,
  decodeImageConfig,
  decodeManifest,
  digestOf,
  findLayerType,
  type Index,
  listImages,
  MAX_CONFIG_SIZE,
  MAX_LAYERS,
  MAX_MANIFEST_SIZE,
  type Manifest,
  MediaType,
} from "./index.ts";

const RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 300);

type Json = Record<string, unknown>;
const bytes = (value: unknown) => Buffer.from(JSON.stringify(value));
const descriptor = (mediaType: string, name: string, more: Json = {}): Json => ({
  mediaType,
  digest: digestOf(name),
  size: name.length,
  ...more,
});
const manifest = (more: Json = {}): Json => ({
  schemaVersion: 2,
  mediaType: MediaType.OCI_MANIFEST,
  config: descriptor(MediaType.OCI_CONFIG, "config"),
  layers: [descriptor(MediaType.OCI_LAYER_GZIP, "one"), descriptor(MediaType.OCI_LAYER_ZSTD, "two")],
  ...more,
});
const index = (manifests: readonly Json[], more: Json = {}): Json => ({
  schemaVersion: 2,
  mediaType: MediaType.OCI_INDEX,
  manifests,
  ...more,
});
const entry = (platform: string | undefined, more: Json = {}): Json => {
  const [os, architecture, variant] = (platform ?? "").split("/");
  return descriptor(MediaType.OCI_MANIFEST, `for ${platform}`, {
    ...(platform === undefined ? {} : { platform: { os, architecture, variant } }),
    ...more,
  });
};
const asManifest = (value: unknown, type?: string): Manifest => {
  const result = decodeManifest(bytes(value), type);
  assert.equal(result.kind, "manifest");
  return result as Manifest;
};
const asIndex = (value: unknown, type?: string): Index => {
  const result = decodeManifest(bytes(value), type);
  assert.equal(result.kind, "index");
  return result as Index;
};

test("decodeManifest() reads OCI and Docker manifests", () => {
  const oci = asManifest(
    manifest({ annotations: { a: "b", __proto__: null } }),
    `${MediaType.OCI_MANIFEST}; charset=utf-8`,
  );
  assert.equal(oci.mediaType, MediaType.OCI_MANIFEST);
  assert.equal(oci.config.digest, digestOf("config"));
  assert.deepEqual(
    oci.layers.map((one) => [one.size, one.layer.compression]),
    [
      [3, "gzip"],
      [3, "zstd"],
    ],
  );
  assert.equal(oci.annotations.a, "b");
  const docker = asManifest({
    schemaVersion: 2,
    mediaType: MediaType.DOCKER_MANIFEST,
    config: descriptor(MediaType.DOCKER_CONFIG, "config"),
    layers: [descriptor(MediaType.DOCKER_LAYER_GZIP, "one")],
  });
  assert.deepEqual(docker.layers[0]!.layer, { compression: "gzip", foreign: false });
});

test("decodeManifest() takes the type from the document, then from the promise, then from the members", () => {
  const untyped = manifest({ mediaType: undefined });
  assert.equal(asManifest(untyped, MediaType.DOCKER_MANIFEST).mediaType, MediaType.DOCKER_MANIFEST);
  assert.equal(asManifest(untyped, "application/json").mediaType, MediaType.OCI_MANIFEST);
  assert.equal(asManifest(untyped).mediaType, MediaType.OCI_MANIFEST);
  assert.equal(asIndex(index([], { mediaType: undefined })).mediaType, MediaType.OCI_INDEX);
  assert.equal(asIndex(index([], { mediaType: undefined }), MediaType.DOCKER_LIST).mediaType, MediaType.DOCKER_LIST);
});

test("decodeManifest() takes hundreds of layers, up to its limit", () => {
  const layers = (count: number) => Array.from({ length: count }, (_, i) => descriptor(MediaType.OCI_LAYER, `${i}`));
  assert.equal(asManifest(manifest({ layers: layers(MAX_LAYERS) })).layers.length, MAX_LAYERS);
  assert.throws(() => decodeManifest(bytes(manifest({ layers: layers(MAX_LAYERS + 1) }))), {
    code: "RESOURCE_EXHAUSTED",
    field: "layers",
  });
  assert.equal(asManifest(manifest({ layers: null })).layers.length, 0);
});

test("decodeManifest() rejects and names the place", () => {
  const layer = (more: Json) => manifest({ layers: [descriptor(MediaType.OCI_LAYER, "x", more)] });
  const cases: readonly (readonly [unknown, string, string, string?])[] = [
    [[], "document", "INVALID_ARGUMENT"],
    [null, "document", "INVALID_ARGUMENT"],
    ["x", "document", "INVALID_ARGUMENT"],
    [{}, "schemaVersion", "INVALID_ARGUMENT"],
    [manifest({ schemaVersion: 3 }), "schemaVersion", "INVALID_ARGUMENT"],
    [manifest({ schemaVersion: "2" }), "schemaVersion", "INVALID_ARGUMENT"],
    [{ schemaVersion: 1, name: "x", fsLayers: [] }, "schemaVersion", "UNIMPLEMENTED"],
    [manifest({ mediaType: undefined }), "schemaVersion", "UNIMPLEMENTED", MediaType.DOCKER_SCHEMA1_SIGNED],
    [{ schemaVersion: 2 }, "mediaType", "INVALID_ARGUMENT"],
    [manifest({ mediaType: 5 }), "mediaType", "INVALID_ARGUMENT"],
    [manifest({ mediaType: "text/plain" }), "mediaType", "UNIMPLEMENTED"],
    [manifest({ schemaVersion: { toString: [] } }), "schemaVersion", "INVALID_ARGUMENT"], // String() of it throws
    // CVE-2021-41190: one document, two readings
    [manifest(), "mediaType", "INVALID_ARGUMENT", MediaType.OCI_INDEX],
    [manifest({ manifests: [] }), "manifests", "INVALID_ARGUMENT"],
    [index([], { layers: [] }), "layers", "INVALID_ARGUMENT"],
    [index([], { config: {} }), "config", "INVALID_ARGUMENT"],
    [index([], { manifests: null }), "manifests", "INVALID_ARGUMENT"],
    [index([], { manifests: {} }), "manifests", "INVALID_ARGUMENT"],
    [manifest({ config: undefined }), "config", "INVALID_ARGUMENT"],
    [manifest({ config: descriptor(MediaType.OCI_EMPTY, "{}") }), "config.mediaType", "UNIMPLEMENTED"],
    [
      manifest({ config: descriptor("application/vnd.cncf.helm.config.v1+json", "h") }),
      "config.mediaType",
      "UNIMPLEMENTED",
    ],
    [manifest({ layers: {} }), "layers", "INVALID_ARGUMENT"],
    [manifest({ layers: [7] }), "layers[0]", "INVALID_ARGUMENT"],
    [layer({ mediaType: "application/vnd.cncf.helm.chart" }), "layers[0].mediaType", "UNIMPLEMENTED"],
    [layer({ mediaType: `${MediaType.OCI_LAYER_GZIP}+encrypted` }), "layers[0].mediaType", "UNIMPLEMENTED"],
    [layer({ mediaType: "a b/c" }), "layers[0].mediaType", "INVALID_ARGUMENT"],
    [layer({ digest: undefined }), "layers[0].digest", "INVALID_ARGUMENT"],
    [layer({ digest: "sha256:../x" }), "layers[0].digest", "INVALID_ARGUMENT"],
    [layer({ digest: `md5:${"0".repeat(32)}` }), "layers[0].digest", "UNIMPLEMENTED"],
    [layer({ size: -1 }), "layers[0].size", "INVALID_ARGUMENT"],
    [layer({ size: 1.5 }), "layers[0].size", "INVALID_ARGUMENT"],
    [layer({ size: 2 ** 53 }), "layers[0].size", "INVALID_ARGUMENT"],
    [layer({ size: "1" }), "layers[0].size", "INVALID_ARGUMENT"],
    [layer({ size: undefined }), "layers[0].size", "INVALID_ARGUMENT"],
    [layer({ urls: "x" }), "layers[0].urls", "INVALID_ARGUMENT"],
    [layer({ urls: Array(65).fill("x") }), "layers[0].urls", "RESOURCE_EXHAUSTED"],
    [layer({ annotations: { a: 1 } }), "layers[0].annotations.a", "INVALID_ARGUMENT"],
    [layer({ annotations: { a: "x".repeat((1 << 20) + 1) } }), "layers[0].annotations", "RESOURCE_EXHAUSTED"],
    [
      layer({ annotations: Object.fromEntries(Array.from({ length: 4097 }, (_, i) => [`k${i}`, ""])) }),
      "layers[0].annotations",
      "RESOURCE_EXHAUSTED",
    ],
  ];
  for (const [value, field, code, type] of cases) {
    assert.throws(
      () => decodeManifest(bytes(value), type),
      (error) => error instanceof FormatError && error.field === field && error.code === code,
      `${JSON.stringify(value).slice(0, 120)} should fail at ${field} with ${code}`,
    );
  }
  assert.throws(() => decodeManifest(Buffer.from("{")), { field: "document" });
  assert.throws(() => decodeManifest(Buffer.from([0x22, 0xff, 0x22])), { field: "document" });
  assert.throws(() => decodeManifest(new Uint8Array(MAX_MANIFEST_SIZE + 1)), { code: "RESOURCE_EXHAUSTED" });
  const deep = Buffer.from(`{"schemaVersion":2,"x":${"[".repeat(1e6)}${"]".repeat(1e6)}}`);
  assert.throws(() => decodeManifest(deep), FormatError);
});

test("decodeManifest() keeps sizes over 2^32 exact", () => {
  for (const size of [0, 2 ** 31, 2 ** 32 + 1, 2 ** 53 - 1]) {
    const value = manifest({ layers: [descriptor(MediaType.OCI_LAYER, "x", { size })] });
    assert.equal(asManifest(value).layers[0]!.size, size);
  }
});

test("decodeManifest() keeps an annotation called __proto__ as data", () => {
  const text = `{"schemaVersion":2,"manifests":[],"annotations":{"__proto__":"x","constructor":"y"}}`;
  const { annotations } = decodeManifest(Buffer.from(text));
  assert.deepEqual(Object.entries(annotations), [
    ["__proto__", "x"],
    ["constructor", "y"],
  ]);
});

test("findLayerType() knows every tar layer type", () => {
  const cases: readonly (readonly [string, string, boolean])[] = [
    [MediaType.OCI_LAYER, "none", false],
    [MediaType.OCI_LAYER_GZIP, "gzip", false],
    [MediaType.OCI_LAYER_ZSTD, "zstd", false],
    ["application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "gzip", true],
    [MediaType.DOCKER_LAYER, "none", false],
    [MediaType.DOCKER_LAYER_GZIP, "gzip", false],
    ["application/vnd.docker.image.rootfs.diff.tar.zstd", "zstd", false],
    ["application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip", true],
  ];
  for (const [type, compression, foreign] of cases)
    assert.deepEqual(findLayerType(type), { compression, foreign }, type);
  assert.equal(findLayerType("application/octet-stream"), undefined);
});

test("choosePlatform() prefers the exact platform, then what else runs, then an entry that says nothing", () => {
  const cases: readonly (readonly [readonly (string | undefined)[], string, string | undefined])[] = [
    [["linux/arm64", "linux/amd64"], "linux/amd64", "linux/amd64"],
    [["linux/386", "linux/amd64"], "linux/amd64", "linux/amd64"],
    [["linux/386"], "linux/amd64", "linux/386"],
    [["linux/arm64/v8"], "linux/arm64", "linux/arm64/v8"],
    [["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "linux/arm/v7", "linux/arm/v6"],
    [["linux/arm/v6", "linux/arm/v7", "linux/arm64"], "linux/arm64", "linux/arm64"],
    [["linux/amd64/v2", "linux/amd64/v3", "linux/amd64"], "linux/amd64/v2", "linux/amd64/v2"],
    [[undefined, "linux/386"], "linux/amd64", "linux/386"],
    [[undefined, "linux/arm64"], "linux/amd64", undefined],
    [["linux/"], "linux/amd64", "linux/"],
  ];
  for (const [platforms, wanted, expected] of cases) {
    const [os, architecture, variant] = wanted.split("/");
    const chosen = choosePlatform(asIndex(index(platforms.map((one) => entry(one)))), {
      os: os!,
      architecture: architecture!,
      ...(variant ? { variant } : {}),
    });
    assert.equal(chosen.digest, digestOf(`for ${expected}`), `${wanted} of ${platforms.join(" ")}`);
  }
});

test("choosePlatform() lists what is there when nothing suits", () => {
  const both = asIndex(index([entry("linux/arm64/v8"), entry("windows/amd64"), entry("unknown/unknown")]));
  assert.throws(
    () => choosePlatform(both, { os: "linux", architecture: "amd64" }),
    (error) =>
      ShaleError.is(error, "NOT_FOUND") &&
      error.message === "Cannot choose an image for linux/amd64: the index has linux/arm64, windows/amd64",
  );
  assert.throws(() => choosePlatform(asIndex(index([])), { os: "linux", architecture: "amd64" }), {
    code: "NOT_FOUND",
  });
});

test("messages carry nothing that a terminal would act on", () => {
  const evil = "\u001b[2J\u202e";
  const cases: readonly (() => unknown)[] = [
    () => decodeManifest(bytes(manifest({ annotations: { [evil]: 1 } }))),
    () => decodeManifest(bytes(manifest({ artifactType: evil, config: descriptor(MediaType.OCI_EMPTY, "{}") }))),
    () => decodeManifest(bytes(manifest({ mediaType: evil }))),
    () => choosePlatform(asIndex(index([entry(`linux/${evil}`)])), { os: "linux", architecture: "amd64" }),
  ];
  for (const act of cases) {
    // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
    assert.throws(act, (error) => error instanceof ShaleError && !/[\u0000-\u001f]/.test(error.message));
  }
});

test("listImages() leaves attestations and artifacts out, and keeps nested indexes", () => {
  const images = listImages(
    asIndex(
      index([
        entry("linux/amd64"),
        entry("unknown/unknown"),
        entry("linux/arm64", { annotations: { "vnd.docker.reference.type": "attestation-manifest" } }),
        descriptor("application/vnd.example.sbom+json", "sbom"),
        descriptor(MediaType.OCI_INDEX, "nested"),
      ]),
    ),
  );
  assert.deepEqual(
    images.map((one) => one.digest),
    [digestOf("for linux/amd64"), digestOf("nested")],
  );
});

const config = (more: Json = {}): Json => ({
  architecture: "arm64",
  variant: "v8",
  os: "linux",
  created: "2024-01-01T00:00:00Z",
  config: {
    User: "1000",
    Env: ["A=b"],
    Cmd: null,
    Entrypoint: ["/x"],
    WorkingDir: "/w",
    Labels: { l: "1" },
    Volumes: { "/v": {} },
    ExposedPorts: { "80/tcp": {} },
  },
  rootfs: { type: "layers", diff_ids: [digestOf("1"), digestOf("2")] },
  history: [{ created_by: "a" }, { created_by: "b", empty_layer: true }, {}],
  ...more,
});

test("decodeImageConfig() reads what a runtime needs", () => {
  const decoded = decodeImageConfig(bytes(config()));
  assert.deepEqual(decoded.platform, { os: "linux", architecture: "arm64" });
  assert.deepEqual(decoded.diffIds, [digestOf("1"), digestOf("2")]);
  assert.equal(decoded.created, "2024-01-01T00:00:00Z");
  assert.deepEqual(
    { ...decoded.config, labels: { ...decoded.config.labels } },
    {
      user: "1000",
      workingDir: "/w",
      env: ["A=b"],
      entrypoint: ["/x"],
      cmd: [],
      volumes: ["/v"],
      exposedPorts: ["80/tcp"],
      labels: { l: "1" },
    },
  );
  assert.deepEqual(decoded.history, [
    { createdBy: "a", emptyLayer: false },
    { createdBy: "b", emptyLayer: true },
    { emptyLayer: false },
  ]);
  assert.deepEqual(decodeImageConfig(bytes({ rootfs: { type: "layers" } })).config.env, []);
  assert.throws(() => checkLayerCount(asManifest(manifest({ layers: [] })), decoded), { field: "rootfs.diff_ids" });
  checkLayerCount(asManifest(manifest()), decoded);
});

test("decodeImageConfig() rejects and names the place", () => {
  const cases: readonly (readonly [unknown, string])[] = [
    [{}, "rootfs"],
    [config({ rootfs: { type: "tree" } }), "rootfs.type"],
    [config({ rootfs: { type: "layers", diff_ids: "x" } }), "rootfs.diff_ids"],
    [config({ rootfs: { type: "layers", diff_ids: ["x"] } }), "rootfs.diff_ids[0]"],
    [config({ rootfs: { type: "layers", diff_ids: Array(MAX_LAYERS + 1).fill("x") } }), "rootfs.diff_ids"],
    [config({ os: 1 }), "os"],
    [config({ config: { Env: "A=b" } }), "config.Env"],
    [config({ config: { Env: [1] } }), "config.Env[0]"],
    [config({ config: { Labels: { a: {} } } }), "config.Labels.a"],
    [config({ history: [{ empty_layer: "yes" }] }), "history[0].empty_layer"],
  ];
  for (const [value, field] of cases) {
    assert.throws(
      () => decodeImageConfig(bytes(value)),
      { name: "FormatError", field },
      JSON.stringify(value).slice(0, 80),
    );
  }
  assert.throws(() => decodeImageConfig(new Uint8Array(MAX_CONFIG_SIZE + 1)), { code: "RESOURCE_EXHAUSTED" });
});

test("decodeManifest() refuses lists that nest 200,000 times where a number should be", () => {
  const nested = `${"[".repeat(200_000)}${"]".repeat(200_000)}`;
  for (const [document, field] of [
    [`{"schemaVersion":${nested}}`, "schemaVersion"],
    [`{"schemaVersion":2,"mediaType":${nested}}`, "mediaType"],
  ] as const) {
    assert.throws(() => decodeManifest(Buffer.from(document)), {
      name: "FormatError",
      field,
      code: "INVALID_ARGUMENT",
    });
  }
});

test("fuzz: decodeManifest() and decodeImageConfig() return or throw FormatError, nothing else", () => {
  const seeds = [manifest(), index([entry("linux/amd64"), entry(undefined)]), config()];
  const junk = fc.oneof(
    fc.jsonValue({ maxDepth: 2 }),
    fc.constantFrom(-1, 2 ** 53, "sha256:", "", MediaType.OCI_INDEX, MediaType.DOCKER_SCHEMA1, null),
    fc.constantFrom({ toString: [] }, [{ toString: [] }], { __proto__: null, constructor: 1 }),
  );
  fc.assert(
    fc.property(fc.constantFrom(...seeds), fc.nat(), junk, fc.boolean(), (seed, at, value, remove) => {
      const copy: unknown = structuredClone(seed);
      const places: { readonly parent: Json; readonly key: string }[] = [];
      const walk = (node: unknown) => {
        if (typeof node !== "object" || node === null) return;
        for (const key of Object.keys(node)) {
          places.push({ parent: node as Json, key });
          walk((node as Json)[key]);
        }
      };
      walk(copy);
      const place = places[at % places.length]!;
      if (remove) delete place.parent[place.key];
      else place.parent[place.key] = value;
      for (const decode of [decodeManifest, decodeImageConfig]) {
        try {
          const result = decode(bytes(copy));
          if ("kind" in result && result.kind === "index")
            choosePlatform(result, { os: "linux", architecture: "arm64" });
        } catch (error) {
          assert.ok(error instanceof FormatError || ShaleError.is(error, "NOT_FOUND"), String(error));
        }
      }
    }),
    { numRuns: RUNS },
  );
});
