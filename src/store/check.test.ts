import assert from "node:assert/strict";
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { after, before, describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { repairStore } from "../images/repair.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { Finding, Store } from "./index.ts";
import {
  assertSound,
  assertTars,
  check,
  collect,
  contentOf,
  type MadeImage,
  noise,
  pull,
  tar,
  withStore,
  writeImage,
} from "./testing/fixtures.ts";

interface Bench {
  readonly store: Store;
  readonly one: MadeImage;
  readonly two: MadeImage;
  /** Ids of one's lower and upper layer, and of two's only layer. */
  readonly ids: { readonly lower: string; readonly upper: string; readonly two: string };
  path(...parts: readonly string[]): string;
  /** The same images in another store. */
  readonly content: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

type Template = Pick<Bench, "one" | "two" | "content"> & { readonly root: string };
const scratch = mkdtempSync(join(tmpdir(), "shale-test-"));
let template: Template;

/** Two images; `two` refers to "shared" in the blob of `one`'s lower layer. */
async function makeTemplate(): Promise<Template> {
  const layout = join(scratch, "layout");
  const root = join(scratch, "template");
  const one = writeImage(layout, "one", [
    tar({ "./": "", first: noise(9000, "first"), shared: noise(6000, "shared"), small: "inline" }),
    tar({ upper: noise(5000, "upper"), ".wh.small": "" }),
  ]);
  const two = writeImage(layout, "two", [tar({ "./": "", again: noise(6000, "shared"), own: noise(7000, "own") })]);
  return withStore(root, async (store) => {
    await pull(store, layout, "one");
    await pull(store, layout, "two");
    return { root, one, two, content: { one: contentOf(store, "one"), two: contentOf(store, "two") } };
  });
}

before(async () => {
  template = await makeTemplate();
});
after(() => rmSync(scratch, { recursive: true }));

/** A store of its own with the two images. */
async function withBench(use: (bench: Bench) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const { root, one, two, content } = template;
    cpSync(root, join(directory, "store"), { recursive: true });
    await withStore(join(directory, "store"), async (store) => {
      const id = (diffId: string) => store.findLayer(diffId as never)!.id;
      const ids = { lower: id(one.diffIds[0]!), upper: id(one.diffIds[1]!), two: id(two.diffIds[0]!) };
      await use({ store, one, two, ids, path: (...parts) => join(store.root, ...parts), content });
    });
  });
}

function flip(path: string, at: number): void {
  const bytes = readFileSync(path);
  bytes.writeUInt8(bytes.readUInt8(at < 0 ? bytes.length + at : at) ^ 0x40, at < 0 ? bytes.length + at : at);
  writeFileSync(path, bytes);
}

function sql(store: Store, statement: string): void {
  const database = new DatabaseSync(join(store.root, "shale.db"));
  database.exec(statement);
  database.close();
}

/** "layer lower", "payload", ... without what differs from run to run. */
function summary(findings: readonly Finding[], { ids }: Bench): string[] {
  const names = new Map(Object.entries(ids).map(([name, id]) => [id, name]));
  return [
    ...new Set(
      findings.map((finding) => {
        if (finding.kind === "layer") return `layer ${names.get(finding.id)}`;
        if (finding.kind === "payload") return `payload of ${names.get(finding.blob)} at ${finding.offset}`;
        return finding.kind === "image" ? `image ${finding.name}` : finding.kind;
      }),
    ),
  ].sort();
}

const repair = async (store: Store) =>
  repairStore(store, await check(store), { registry: () => Promise.reject(new Error("no registry here")) });

interface Damage {
  readonly name: string;
  readonly make: (bench: Bench) => void;
  readonly found: readonly string[];
  /** Layers that have to be fetched again. */
  readonly lost: readonly ("lower" | "upper" | "two")[];
}

const DAMAGES: readonly Damage[] = [
  {
    name: "a flipped bit in a payload of one layer",
    make: ({ path, ids }) => flip(path("blobs", ids.lower), 5),
    found: ["layer lower", "payload of lower at 0"],
    lost: ["lower"],
  },
  {
    name: "a flipped bit in a payload that another image refers to",
    make: ({ path, ids }) => flip(path("blobs", ids.lower), 12_288 + 5),
    found: ["layer lower", "layer two", "payload of lower at 12288"],
    lost: ["lower", "two"],
  },
  {
    name: "a payload table that does not match its checksum",
    make: ({ path, ids }) => flip(path("blobs", ids.upper), -64 + 12),
    found: ["layer upper"],
    lost: ["upper"],
  },
  {
    name: "a flipped bit in a digest of a payload table",
    make: ({ path, ids }) => flip(path("blobs", ids.upper), -70),
    found: ["index row", "layer upper", "payload of upper at 0"],
    lost: ["upper"],
  },
  {
    name: "a lost payload table of a blob that others refer to",
    make: ({ path, ids }) => truncateSync(path("blobs", ids.lower), 20_480),
    found: ["index row", "layer lower", "layer two"],
    lost: ["lower", "two"],
  },
  {
    name: "a lost blob",
    make: ({ path, ids }) => unlinkSync(path("blobs", ids.upper)),
    found: ["index row", "layer upper"],
    lost: ["upper"],
  },
  {
    name: "a blob of length zero (C18)",
    make: ({ path, ids }) => truncateSync(path("blobs", ids.upper), 0),
    found: ["index row", "layer upper"],
    lost: ["upper"],
  },
  ...(["meta.erofs", "tar.headers"] as const).flatMap((file): Damage[] => [
    {
      name: `a flipped bit in ${file}`,
      make: ({ path, ids }) => flip(path("layers", ids.two, file), -1),
      found: ["layer two"],
      lost: ["two"],
    },
    {
      name: `a lost ${file}`,
      make: ({ path, ids }) => unlinkSync(path("layers", ids.two, file)),
      found: ["layer two"],
      lost: ["two"],
    },
    {
      name: `an empty ${file} (C18)`,
      make: ({ path, ids }) => truncateSync(path("layers", ids.two, file), 0),
      found: ["layer two"],
      lost: ["two"],
    },
  ]),
  {
    name: "a flipped bit in the superblock",
    make: ({ path, ids }) => flip(path("layers", ids.two, "meta.erofs"), 1030),
    found: ["layer two"],
    lost: ["two"],
  },
  {
    name: "a lost layer directory",
    make: ({ path, ids }) => renameSync(path("layers", ids.upper), path("..", "elsewhere")),
    found: ["layer upper"],
    lost: ["upper"],
  },
  {
    name: "a damaged merged image",
    make: ({ path }) => flip(path("merged", readdirSync(path("merged"))[0]!), 2000),
    found: ["merged image"],
    lost: [],
  },
  {
    name: "a lost merged image",
    make: ({ path }) => unlinkSync(path("merged", readdirSync(path("merged"))[0]!)),
    found: ["merged image"],
    lost: [],
  },
  {
    name: "an index row for a payload that is not there",
    make: ({ store }) => sql(store, "UPDATE payloads SET offset = offset + 4096 WHERE length = 5000"),
    found: ["index row"],
    lost: [],
  },
  {
    name: "an index row of another digest",
    make: ({ store }) => sql(store, "UPDATE payloads SET digest = zeroblob(32) WHERE length = 5000"),
    found: ["index row"],
    lost: [],
  },
  {
    name: "an index row of a blob that is gone",
    make: ({ store }) => sql(store, "INSERT INTO payloads VALUES (zeroblob(32), 999, 0, 5000)"),
    found: ["index row"],
    lost: [],
  },
  {
    name: "stray files",
    make({ path }) {
      writeFileSync(path("blobs", "1-aaaaaaaaaaaa-0"), "x");
      mkdirSync(path("layers", "1-aaaaaaaaaaaa-1"));
      writeFileSync(path("merged", "what is this"), "x");
    },
    found: ["stray file"],
    lost: [],
  },
];

describe("check", () => {
  test("has nothing to say about a sound store, and reads everything", () =>
    withBench(async ({ store }) => {
      const report = await check(store);
      assert.deepEqual(report.findings, []);
      assert.deepEqual([report.layers, report.payloads], [3, 4]);
    }));

  for (const { name, make, found, lost } of DAMAGES) {
    test(`finds ${name}; repair fetches only what is damaged`, () =>
      withBench(async (bench) => {
        const { store, ids, one, two, content } = bench;
        make(bench);
        assert.deepEqual(summary((await check(store)).findings, bench), found);
        const diffIds = { lower: one.diffIds[0]!, upper: one.diffIds[1]!, two: two.diffIds[0]! };
        const repaired = await repair(store);
        assert.deepEqual(repaired.map((layer) => layer.diffId).sort(), lost.map((layer) => diffIds[layer]).sort());
        for (const layer of repaired) assert.equal(layer.from, `oci:${one.directory}`, layer.failures.join());
        for (const layer of ["lower", "upper", "two"] as const) {
          const same = store.findLayer(diffIds[layer])!.id === ids[layer];
          assert.equal(same, !lost.includes(layer), `layer ${layer}`);
        }
        for (const image of ["one", "two"]) {
          assert.deepEqual(contentOf(store, image), content[image]);
          assertTars(store, image);
        }
        await assertSound(store, "repaired");
        collect(store);
        await assertSound(store, "collected");
        for (const image of ["one", "two"]) assertTars(store, image);
      }));
  }

  test("--quick finds lost and changed metadata, but reads no payload", () =>
    withBench(async (bench) => {
      const { store, path, ids } = bench;
      flip(path("blobs", ids.upper), 5);
      flip(path("layers", ids.two, "meta.erofs"), -1);
      const report = await check(store, { quick: true });
      assert.deepEqual(summary(report.findings, bench), ["layer two"]);
      assert.equal(report.payloads, 0);
    }));

  test("what can't be repaired stays out of sight, and everything else is usable", () =>
    withBench(async (bench) => {
      const { store, path, ids, one, content } = bench;
      flip(path("layers", ids.upper, "meta.erofs"), -1);
      renameSync(one.directory, `${one.directory} gone`);
      const [repaired] = await repair(store);
      assert.equal(repaired!.from, undefined);
      assert.match(repaired!.failures[0]!, /^oci:.*layout/);
      assert.deepEqual(store.listDamagedLayers(), [one.diffIds[1]]);
      assert.throws(
        () => contentOf(store, "one"),
        (error) => ShaleError.is(error, "DATA_LOSS"),
      );
      assert.deepEqual(contentOf(store, "two"), content.two);
      assert.deepEqual(summary((await check(store)).findings, bench), ["image one"]);
      collect(store);
      store.measureUsage();
      renameSync(`${one.directory} gone`, one.directory);
      await pull(store, one.directory, "one");
      assert.deepEqual(contentOf(store, "one"), content.one);
      collect(store);
      assert.equal(existsSync(path("layers", ids.upper)), false, "replaced, so collected");
      await assertSound(store);
    }));

  test("stops at a signal", () =>
    withBench(async ({ store }) => {
      using operation = store.begin("check");
      await assert.rejects(operation.check({ signal: AbortSignal.abort() }), (error) =>
        ShaleError.is(error, "CANCELLED"),
      );
    }));

  test("finds a damaged document, which the next pull replaces", () =>
    withBench(async ({ store, two }) => {
      sql(store, `UPDATE documents SET bytes = x'7b7d' WHERE digest = '${two.manifest.digest}'`);
      const { findings } = await check(store);
      assert.deepEqual(
        findings.map(({ kind }) => kind),
        ["document"],
      );
      await pull(store, two.directory, "two");
      await assertSound(store);
      assert.deepEqual(Buffer.from(store.getDocument(two.manifest.digest).bytes), two.manifest.bytes);
    }));

  test("one damaged layer fails neither a pull nor the indexing of others (G10)", () =>
    withBench(async (bench) => {
      const { store, path, ids, one } = bench;
      sql(store, `UPDATE layers SET indexed = 0 WHERE id = '${ids.upper}'`);
      truncateSync(path("blobs", ids.upper), 100);
      const image = writeImage(one.directory, "three", [tar({ "./": "", three: noise(8000, "three") })]);
      await pull(store, image.directory, "three");
      assertTars(store, "three");
    }));
});
