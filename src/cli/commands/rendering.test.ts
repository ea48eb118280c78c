/** What people see of fixed values: every table and sentence that commands print. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { FileType } from "../../formats/layer-index/index.ts";
import type { ImageFile } from "../../images/files.ts";
import type { Log } from "../../log/index.ts";
import type { GarbageItem, ImageSummary, Usage } from "../../store/index.ts";
import { formatOutcome } from "./check.ts";
import { formatUsage } from "./df.ts";
import { formatDifference, formatSums } from "./diff.ts";
import { formatCollection, formatDryRun } from "./gc.ts";
import { formatHistory, listSteps } from "./history.ts";
import { describeFile, formatMinutes, formatMode, formatTimestamp, LongFormat } from "./image-file.ts";
import { formatImages } from "./images.ts";
import { formatLayers } from "./layers.ts";
import { formatMounts } from "./mount.ts";
import { formatPull, type PulledImage } from "./pull.ts";
import { logRegistryEvent } from "../../registry/log.ts";
import { registryOptions } from "./registry-access.ts";
import { formatUnmount } from "./umount.ts";

const DIGEST = `sha256:${"ab".repeat(32)}` as ImageSummary["digest"];
const TIME = new Date("2026-01-02T03:04:05Z");

describe("formatPull()", () => {
  const layer = {
    ...{ diffId: DIGEST, verifiedBy: "diffId" as const, digest: DIGEST },
    ...{ size: 5, received: 5, reused: undefined, stored: 7 },
  };
  const image = (states: readonly PulledImage["layers"][number]["state"][]): PulledImage => ({
    name: "docker.io/library/app:1",
    digest: DIGEST,
    manifests: [],
    layers: states.map((state) => ({ ...layer, state })),
    received: 12_000_000,
    stored: 20_000_000,
    elapsedMs: 1234,
  });
  const CASES: readonly (readonly [states: readonly PulledImage["layers"][number]["state"][], text: string])[] = [
    [["fetched"], "1 layer fetched; 12.0 MB received, 20.0 MB new in the store; 1.2 s"],
    [["fetched", "present"], "1 layer fetched, 1 already here; 12.0 MB received, 20.0 MB new in the store; 1.2 s"],
    [["shared", "present"], "1 layer fetched by another pull, 1 already here; 1.2 s"],
    [["present"], "its layer is already here; 1.2 s"],
    [["present", "present"], "all 2 layers are already here; 1.2 s"],
    [[], "0 layers fetched; 1.2 s"],
  ];
  for (const [states, text] of CASES) {
    test(`of layers that are [${states.join(", ")}]`, () => {
      assert.equal(formatPull(image(states)), `app:1 (abababababab): ${text}`);
    });
  }
});

describe("formatImages()", () => {
  const image: ImageSummary = {
    name: "docker.io/library/app:1",
    digest: DIGEST,
    mediaType: "",
    size: 1,
    source: "",
    pinned: false,
    createdAt: TIME,
    updatedAt: TIME,
    platforms: ["linux/amd64"],
    layers: 3,
    contentBytes: 1_000_000,
    storedBytes: 900_000,
    uniqueBytes: 5,
  };
  test("one line an image, pins at its end, no control character of a name", () => {
    assert.equal(
      formatImages([image, { ...image, name: "oci:/a\u001b[31m", pinned: true }]),
      `\
NAME            DIGEST        PLATFORM     LAYERS     SIZE  STORED  UNIQUE
app:1           abababababab  linux/amd64       3  1.00 MB  900 kB     5 B
oci:/a\\x1b[31m  abababababab  linux/amd64       3  1.00 MB  900 kB     5 B  pinned
`,
    );
  });
});

test("formatLayers() counts images beyond the second, and says what is damaged or unused", () => {
  const row = {
    diffId: DIGEST,
    verifiedBy: "diffId" as const,
    entries: 1234,
    tarSize: 1,
    contentBytes: 1000,
    ownBytes: 500,
    sharedBytes: 400,
    inlineBytes: 100,
    metadataBytes: 50,
    committedAt: TIME,
    images: ["a.example/x:1", "a.example/y:1", "a.example/z:1"],
    damage: undefined,
  };
  assert.equal(
    formatLayers([row, { ...row, images: [] }, { ...row, damage: "gone" }]),
    `\
DIFFID        ENTRIES     SIZE    OWN  SHARED  METADATA  IMAGES
abababababab    1,234  1.00 kB  500 B   400 B      50 B  a.example/x:1, a.example/y:1, and 1 more
abababababab    1,234  1.00 kB  500 B   400 B      50 B  -
abababababab    1,234  1.00 kB  500 B   400 B      50 B  damaged
`,
  );
});

describe("listSteps()", () => {
  const layers = ["a", "b", "c"].map((name) => ({ diffId: name, digest: name, mediaType: "", size: 1 }));
  const manifest = { layers } as unknown as Parameters<typeof listSteps>[1];
  const store = { findLayer: (diffId: string) => (diffId === "c" ? undefined : { contentBytes: 7 }) };
  const steps = (history: readonly { readonly createdBy: string; readonly emptyLayer: boolean }[]) =>
    listSteps(
      { history } as unknown as Parameters<typeof listSteps>[0],
      manifest,
      store as unknown as Parameters<typeof listSteps>[2],
    );

  test("gives layers to the steps that left one, lowest first, and layers without a step to the base", () => {
    const found = steps([
      { createdBy: "one", emptyLayer: false },
      { createdBy: "env", emptyLayer: true },
      { createdBy: "two", emptyLayer: false },
    ]);
    assert.deepEqual(
      found.map((step) => [step.createdBy, step.layer?.diffId, step.size]),
      [
        ["two", "c", undefined],
        ["env", undefined, 0],
        ["one", "b", 7],
        [undefined, "a", 7],
      ],
    );
    assert.equal(
      formatHistory(found.slice(0, 2), { full: false }),
      "CREATED  SIZE  CREATED BY  COMMENT\n-           ?  two\n-         0 B  env\n",
    );
  });
  test("takes a history with more steps than layers", () => {
    const found = steps(Array.from({ length: 5 }, () => ({ createdBy: "x", emptyLayer: false })));
    assert.equal(found.length, 5);
    assert.equal(found[0]?.layer, undefined);
  });
});

describe("formatMode()", () => {
  const CASES: readonly (readonly [mode: number, text: string])[] = [
    [FileType.REGULAR | 0o644, "-rw-r--r--"],
    [FileType.REGULAR | 0o4755, "-rwsr-xr-x"],
    [FileType.REGULAR | 0o6644, "-rwSr-Sr--"],
    [FileType.DIRECTORY | 0o1777, "drwxrwxrwt"],
    [FileType.DIRECTORY | 0o1776, "drwxrwxrwT"],
    [FileType.SYMLINK | 0o777, "lrwxrwxrwx"],
    [FileType.CHARACTER | 0o600, "crw-------"],
    [FileType.BLOCK | 0o060, "b---rw----"],
    [FileType.FIFO, "p---------"],
    [FileType.SOCKET | 0o007, "s------rwx"],
  ];
  for (const [mode, text] of CASES) test(text, () => assert.equal(formatMode(mode), text));
});

test("formatMinutes() and formatTimestamp() take times before 1970, after 9999, and beyond any calendar", () => {
  assert.equal(formatMinutes(-1), "1969-12-31 23:59");
  assert.equal(formatMinutes(253402300800), "+010000-01-01 00:00");
  assert.equal(formatMinutes(2 ** 53), `@${2 ** 53}`);
  assert.equal(formatTimestamp(-1, 5), "1969-12-31T23:59:59.000000005Z");
  assert.equal(formatTimestamp(2 ** 53, 1), `@${2 ** 53}.000000001`);
});

function file(path: string, mode: number, more: Partial<ImageFile["inode"]> = {}, target?: string): ImageFile {
  const inode = {
    mode,
    uid: 0,
    gid: 0,
    size: 0,
    links: 1,
    mtimeSeconds: 1767323045,
    mtimeNanoseconds: 0,
    rdevMajor: 0,
    rdevMinor: 0,
    ...more,
  };
  return { path, inode: inode as ImageFile["inode"], target };
}

test("LongFormat keeps columns as wide as the widest so far, also over batches", () => {
  const long = new LongFormat();
  const same = (name: string) => name;
  const first = long.format(
    [{ file: file("/a", FileType.REGULAR | 0o644, { size: 123456, uid: 1000 }), name: "a" }],
    same,
  );
  const second = long.format([{ file: file("/b", FileType.SYMLINK | 0o777, { size: 1 }, "a"), name: "b" }], same);
  assert.equal(first, "-rw-r--r-- 1 1000 0 123456 2026-01-02 03:04 a\n");
  assert.equal(second, "lrwxrwxrwx 1    0 0      1 2026-01-02 03:04 b -> a\n");
});

test("describeFile() gives exact bytes only where text can't", () => {
  const plain = describeFile(file("/caf\xc3\xa9", FileType.REGULAR));
  assert.deepEqual([plain.path, plain.pathBase64], ["/café", undefined]);
  const odd = describeFile(file("/\xff\n", FileType.CHARACTER, { rdevMajor: 1, rdevMinor: 3 }));
  assert.deepEqual([odd.path, odd.pathBase64, odd.device], ["/\\xff\\x0a", "L/8K", { major: 1, minor: 3 }]);
  assert.equal(odd.size, undefined);
});

test("formatDifference() and formatSums()", () => {
  const base = { path: "/a\n", sizeBefore: 1, sizeAfter: 2000 } as const;
  assert.equal(formatDifference({ ...base, kind: "added", what: [] }), "+ /a\\x0a\n");
  assert.equal(
    formatDifference({ ...base, kind: "changed", what: ["content", "mtime"] }),
    "M /a\\x0a  content (1 B -> 2.00 kB), mtime\n",
  );
  assert.equal(
    formatSums({ added: 1, removed: 0, changed: 2, bytesAdded: 10, bytesRemoved: 0 }),
    "1 path added (10 B new), 0 removed, 2 changed (0 B gone)",
  );
});

describe("garbage", () => {
  const item: GarbageItem = { kind: "layer", id: "sha256:ab", size: 1000, why: "no image has it" };
  test("formatDryRun() gives every item its reason", () => {
    assert.equal(
      formatDryRun({ items: [item, { ...item, kind: "blob", id: "1-a-0" }], freed: 2000, postponed: [] }),
      `\
KIND   ID            SIZE  WHY
layer  sha256:ab  1.00 kB  no image has it
blob   1-a-0      1.00 kB  no image has it
would free 2.00 kB
`,
    );
    assert.equal(formatDryRun({ items: [], freed: 0, postponed: [] }), "nothing to free\n");
  });
  test("formatCollection() sums up by kind, and says what waits", () => {
    const text = formatCollection(
      { items: [item, item, { ...item, kind: "staging" }], freed: 3000, postponed: [item] },
      20,
    );
    assert.equal(
      text,
      "freed 3.00 kB in 20 ms: 2 layers (2.00 kB), 1 abandoned ingest (1.00 kB)\n" +
        "1 item (1.00 kB) may be in use by what runs now; a later gc frees them\n",
    );
    assert.equal(formatCollection({ items: [], freed: 0, postponed: [] }, 5), "nothing to free (5.0 ms)\n");
  });
});

test("formatMounts() and formatUnmount()", () => {
  const mount = { target: "/mnt", image: "a.example/x:1", manifest: DIGEST, mode: "merged", createdAt: TIME } as const;
  assert.equal(
    formatMounts([
      { ...mount, upper: undefined, state: "mounted" },
      { ...mount, upper: "/s/upper", state: "elsewhere" },
    ]),
    `\
DIRECTORY  IMAGE          ACCESS     FORM    SINCE
/mnt       a.example/x:1  read-only  merged  2026-01-02 03:04:05
/mnt       a.example/x:1  writable   merged  2026-01-02 03:04:05  in another mount namespace
`,
  );
  assert.equal(formatUnmount({ directory: "/mnt", unmounted: true, upper: undefined }), "/mnt: unmounted\n");
  assert.equal(formatUnmount({ directory: "/mnt", unmounted: false, upper: undefined }), "/mnt: nothing was mounted\n");
});

describe("formatOutcome()", () => {
  const report = { layers: 1, layersByToc: 0, payloads: 2, bytes: 3000, findings: [] };
  const finding = { kind: "layer", diffId: DIGEST as never, id: "1", problem: "its tar comes back otherwise" } as const;
  const lost = { kind: "image", name: "docker.io/library/app:1", problem: "layer x is not in the store" } as const;
  test("a sound store", () => {
    assert.equal(
      formatOutcome({ report, quick: false, repaired: undefined, remaining: [] }, 1200),
      "checked 1 layer, 2 payloads, 3.00 kB hashed, in 1.2 s\nthe store is sound\n",
    );
  });
  test("damage, what users lose first; quick", () => {
    const findings = [finding, lost];
    assert.equal(
      formatOutcome({ report: { ...report, findings }, quick: true, repaired: undefined, remaining: findings }, 5),
      `\
image app:1: layer x is not in the store
layer ${DIGEST}: its tar comes back otherwise
checked 1 layer, no payload was read, in 5.0 ms
the store is damaged (2 findings); shale check --repair puts right what it can
`,
    );
  });
  test("many findings of a kind are cut, with their number", () => {
    const findings = Array.from({ length: 23 }, () => finding);
    const text = formatOutcome(
      { report: { ...report, findings }, quick: false, repaired: undefined, remaining: findings },
      5,
    );
    assert.match(text, /\nand 3 more layers, in --json\n/);
  });
  test("a repair that succeeded, and one that could not", () => {
    const damaged = { ...report, findings: [finding, { kind: "stray file", path: "/x", problem: "unknown" } as const] };
    const good = { diffId: DIGEST as never, from: "docker://a.example/x", failures: [] };
    const repaired = formatOutcome({ report: damaged, quick: false, repaired: [good], remaining: [] }, 5);
    assert.match(
      repaired,
      /\nrepaired layer sha256:\w+: fetched from docker:\/\/a\.example\/x\nmoved 1 stray file to quarantine\n/,
    );
    assert.match(repaired, /\ndamage was repaired: the store is sound now\n$/);
    const bad = {
      diffId: DIGEST as never,
      from: undefined,
      failures: ["docker://a.example/x: gone", "oci:/y: gone too"],
    };
    const failed = formatOutcome({ report: damaged, quick: false, repaired: [bad], remaining: [lost] }, 5);
    assert.match(failed, /\ncould not repair layer sha256:\w+: docker:\/\/a\.example\/x: gone; oci:\/y: gone too\n/);
    assert.match(failed, /\ndamage remains \(1 finding\); pull these images again/);
  });
});

describe("formatUsage()", () => {
  const numbers = { apparent: 2000, stored: 1000, unique: 400, shared: 600 };
  const usage: Usage = {
    images: [{ name: "docker.io/library/app:1", layers: [], ...numbers }],
    layers: [{ diffId: DIGEST as never, images: [], ...numbers }],
    apparent: 4000,
    layersApparent: 3000,
    blobs: 800,
    metadata: 100,
    merged: 50,
    database: 40,
    downloads: 10,
    links: { count: 0, bytes: 0, unusedBytes: 0 },
    clones: { count: 0, bytes: 0 },
    snapshots: { active: 0, view: 0, committed: 0, bytes: 0 },
    stored: 1000,
    savedByDeduplication: 1000,
    fileSystem: { type: 0xef53, blockSize: 4096, size: 1_000_000, available: 500_000, usedShare: 0.5, freeInodes: 1 },
  };
  test("tables without bars where stdout is no terminal", () => {
    assert.equal(
      formatUsage(usage, { layers: true, output: { columns: undefined, unicode: true } }),
      `\
IMAGE  APPARENT   STORED  UNIQUE  SHARED
app:1   2.00 kB  1.00 kB   400 B   600 B

LAYER         APPARENT   STORED  UNIQUE  SHARED
abababababab   2.00 kB  1.00 kB   400 B   600 B

IN SUM
file contents             800 B
metadata of layers        100 B
merged images              50 B
database and downloads     50 B
stored in all           1.00 kB  500 kB of 1.00 MB free on its file system
each image unpacked     4.00 kB  4.00 times what is stored
each layer unpacked     3.00 kB  3.00 times what is stored
saved by deduplication  1.00 kB  equal files and holes
`,
    );
  });
  test("bars on a terminal: of each image, and of the store with what was saved", () => {
    const text = formatUsage(usage, { layers: false, output: { columns: 100, unicode: false } });
    const [header, row, , bar, key] = text.split("\n");
    assert.match(header!, /# unique {2}\+ shared$/);
    assert.match(row!, / {2}#{12}\+{18}$/);
    assert.equal(bar, `${"#".repeat(24)}+++==x${".".repeat(30)}`);
    assert.equal(key, "# file contents  + metadata of layers  = merged images  x database and downloads  . saved");
    for (const columns of [20, 40, 80, 200]) {
      const narrow = formatUsage(usage, { layers: false, output: { columns, unicode: true } }).split("\n")[3]!;
      assert.ok([...narrow].length <= columns, `${columns}: ${narrow}`);
    }
  });
  test("an empty store", () => {
    const empty = {
      ...usage,
      images: [],
      layers: [],
      apparent: 0,
      layersApparent: 0,
      stored: 0,
      savedByDeduplication: 0,
    };
    const none = { blobs: 0, metadata: 0, merged: 0, database: 0, downloads: 0 };
    const text = formatUsage({ ...empty, ...none }, { layers: false, output: { columns: 80, unicode: true } });
    assert.doesNotMatch(text, /NaN|Infinity/);
  });
});

describe("registryOptions()", () => {
  const log: Log = { error: () => {}, warn: () => {}, info: () => {}, debug: () => {} };
  const values = { "tls-verify": true, "auth-file": undefined, "hosts-dir": undefined };
  test("--tls-verify=false is about the hosts that were named, once each", () => {
    const hosts = () => ["a:1", "a:1", "b"];
    assert.equal(registryOptions(values, { log, hosts }).insecure, undefined);
    assert.deepEqual(registryOptions({ ...values, "tls-verify": false }, { log, hosts }).insecure, ["a:1", "b"]);
    assert.equal(registryOptions(values, { log, hosts: "all" }).insecure, undefined);
    assert.equal(registryOptions({ ...values, "tls-verify": false }, { log, hosts: "all" }).insecure, "all");
  });
  test("files and connections are passed on", () => {
    const given = { ...values, "auth-file": "/auth", "hosts-dir": "/hosts" };
    const { authFile, hostsDirs, maxConnections } = registryOptions(given, { log, hosts: () => [], maxConnections: 3 });
    assert.deepEqual([authFile, hostsDirs, maxConnections], ["/auth", ["/hosts"], 3]);
  });
  test("logRegistryEvent() warns of what slows a pull down, and keeps requests for debugging", () => {
    const said: string[] = [];
    const note = (level: string) => (message: string) => void said.push(`${level}: ${message}`);
    const noting: Log = { error: note("error"), warn: note("warn"), info: note("info"), debug: note("debug") };
    logRegistryEvent(noting, { kind: "request", method: "GET", url: "https://a/v2/", status: 200, durationMs: 1 });
    logRegistryEvent(noting, { kind: "retry", host: "a", reason: "503", attempt: 2, waitMs: 100 });
    logRegistryEvent(noting, { kind: "fallback", host: "m", to: "a", reason: "404" });
    logRegistryEvent(noting, { kind: "resume", host: "a", digest: "sha256:x", offset: 5 });
    assert.deepEqual(said, [
      "debug: GET https://a/v2/",
      "warn: Trying a again: 503",
      "warn: Asking a instead of m: 404",
      "info: Going on with sha256:x after a break",
    ]);
  });
});
