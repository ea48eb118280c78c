/**
 * Races of two and more processes on one store (R1-R17). Processes meet at a barrier and then go; where a moment matters,
 * one of them waits there. Every race ends with a sound store and the right content.
 */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../src/errors/index.ts";
import type { Digest } from "../src/oci/index.ts";
import { Store } from "../src/store/index.ts";
import {
  assertSound,
  assertTars,
  collect,
  contentOf,
  type Files,
  noise,
  pull,
  tar,
  withStore,
  writeImage,
} from "../src/store/testing/fixtures.ts";
import { storeProcess } from "../src/store/testing/processes.ts";
import type { Child } from "../src/sys/testing/child.ts";
import { withTemporaryDirectory } from "../src/sys/testing/filesystems.ts";

const base: Files = { "./": "", base: noise(60_000, "base"), "etc/": "", "etc/conf": "x" };
const IMAGES: Readonly<Record<string, readonly Files[]>> = {
  one: [base, { one: noise(40_000, "one"), shared: noise(25_000, "shared") }],
  two: [base, { two: noise(45_000, "two"), same: noise(25_000, "shared") }],
  // Refers to payloads of `one` without having its layers.
  thief: [{ "./": "", stolen: noise(60_000, "base"), also: noise(40_000, "one"), own: noise(9000, "thief") }],
};

interface Race {
  readonly root: string;
  readonly layout: string;
  /** Content of each image in a store where nothing raced. */
  readonly content: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

async function withRace(use: (race: Race) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const layout = join(directory, "layout");
    for (const [name, layers] of Object.entries(IMAGES)) writeImage(layout, name, layers.map(tar));
    const content = await withStore(join(directory, "quiet"), async (store) => {
      for (const name of Object.keys(IMAGES)) await pull(store, layout, name);
      return Object.fromEntries(Object.keys(IMAGES).map((name) => [name, contentOf(store, name)]));
    });
    const root = join(directory, "store");
    await Store.open(root, { create: true }).close();
    await use({ root, layout, content });
  });
}

/** What processes may do: `$` is fixtures.ts. Removing and collecting lose races in ways that are no failures. */
const PRELUDE = `
  const store = Store.open(args.root);
  const pull = (name) => $.pull(store, args.layout, name);
  const unless = (codes, work) => { try { return work(); } catch (error) { if (!codes.includes(error.code)) throw error; } };
  const remove = (name) => unless(["NOT_FOUND"], () => store.removeImage(name));
  const collect = () => unless(["FAILED_PRECONDITION"], () => $.collect(store));
`;

/** Runs the sources at the same time, each in its process; every one must succeed. */
async function together({ root, layout }: Race, ...sources: readonly string[]): Promise<void> {
  const children = sources.map((source) =>
    storeProcess(`${PRELUDE} say("ready"); await heard(); ${source}; await store.close(); say("done");`, {
      root,
      layout,
    }),
  );
  try {
    for (const child of children) assert.equal(await child.line(), "ready");
    for (const child of children) child.send("go\n");
    const lines = await Promise.all(children.map((child) => child.line()));
    assert.deepEqual(
      lines,
      sources.map(() => "done"),
    );
  } finally {
    for (const child of children) await child[Symbol.asyncDispose]();
  }
}

/** The store is sound, holds these images with the right content, and nothing else once it was collected. */
async function assertOutcome({ root, content }: Race, images: readonly string[]): Promise<void> {
  await withStore(root, async (store) => {
    assert.deepEqual(
      store.listImages().map((image) => image.name),
      [...images].sort(),
    );
    await assertSound(store, "after the race");
    collect(store);
    await assertSound(store, "after gc");
    for (const name of images) {
      assert.deepEqual(contentOf(store, name), content[name]);
      assertTars(store, name);
    }
    const needed = new Set(images.flatMap((name) => store.manifestsOf(name)[0]!.layers.map((layer) => layer.diffId)));
    assert.equal(store.listLayers().length, needed.size);
    assert.equal(readdirSync(join(root, "layers")).length, needed.size);
  });
  for (const directory of ["staging", "leases"]) assert.deepEqual(readdirSync(join(root, directory)), [], directory);
}

const repeat = (times: number, body: string) => `for (let n = 0; n < ${times}; n++) { ${body} }`;

const RACES: readonly {
  readonly name: string;
  readonly before?: readonly string[];
  readonly processes: readonly string[];
  readonly after: readonly string[];
}[] = [
  {
    name: "R1 pull || pull of one image",
    processes: [`await pull("one")`, `await pull("one")`, `await pull("one")`],
    after: ["one"],
  },
  { name: "R2 pulls that share a base", processes: [`await pull("one")`, `await pull("two")`], after: ["one", "two"] },
  {
    name: "R3 pull || rm and gc of what it deduplicates against",
    before: ["one"],
    processes: [`await pull("thief")`, `remove("one"); ${repeat(20, "collect()")}`],
    after: ["thief"],
  },
  {
    name: "R4 pull || rm and gc of the image whose layers it builds on",
    before: ["one"],
    processes: [`await pull("two")`, `remove("one"); ${repeat(20, "collect()")}`],
    after: ["two"],
  },
  {
    name: "R6 pull and rm in loops, with gc (R11)",
    processes: [
      repeat(6, `await pull("one"); remove("one")`),
      repeat(6, `await pull("two"); remove("two"); await pull("thief"); remove("thief")`),
      repeat(60, "collect(); await new Promise(setImmediate)"),
    ],
    after: [],
  },
  {
    name: "R7, R8 processes that come and go || one that stages",
    processes: [
      `${repeat(4, `await pull("one"); remove("one"); collect()`)}; await pull("one")`,
      repeat(40, `const other = Store.open(args.root); { using _ = other.begin("passing"); } await other.close()`),
      repeat(
        40,
        `const other = Store.open(args.root); { using o = other.begin("passing"); o.temporaryDirectory(); } await other.close()`,
      ),
    ],
    after: ["one"],
  },
  {
    name: "R9 list || rm: what a listed image leads to is there",
    before: ["one", "two"],
    processes: [
      `${repeat(6, `remove("one"); collect(); await pull("one")`)}`,
      repeat(
        300,
        `for (const { name } of store.listImages()) {
           const lost = store.manifestsOf(name).flatMap(({ layers }) => layers).filter(({ diffId }) => !store.findLayer(diffId));
           // Gone between two looks is what removing means; gone and still listed is not.
           if (lost.length > 0) {
             const { findings } = await $.check(store, { quick: true });
             if (findings.length > 0) throw new Error(JSON.stringify(findings));
           }
           for (const { config } of store.manifestsOf(name)) {
             if (store.findDocument(config) === undefined && store.manifestsOf(name).some((one) => one.config === config)) throw new Error(config);
           }
         }`,
      ),
    ],
    after: ["one", "two"],
  },
  {
    name: "R10 export || rm, gc and pull: the whole disk with the same bytes, or that there is no such image",
    before: ["one", "two"],
    processes: [
      `const { exportDisk } = await import(${JSON.stringify(new URL("../src/export/index.ts", import.meta.url).href)});
       const { readFileSync } = await import("node:fs");
       const { join } = await import("node:path");
       const disks = new Map();
       let made = 0;
       ${repeat(
         60,
         `const name = n % 2 === 0 ? "one" : "two";
          using operation = store.begin("export");
          const manifest = store.manifestsOf(name)[0];
          if (manifest === undefined) { await new Promise(setImmediate); continue; }
          const disk = join(args.root, "..", "disk");
          try {
            await exportDisk(operation, { manifest, layer: undefined }, disk);
          } catch (error) {
            if (error.code !== "NOT_FOUND") throw error;
            continue;
          }
          made++;
          const bytes = readFileSync(disk);
          if (disks.get(name)?.equals(bytes) === false) throw new Error("the disk of " + name + " differs from the first one");
          disks.set(name, bytes);`,
       )}
       if (made === 0) throw new Error("nothing was exported")`,
      repeat(15, `remove("one"); collect(); await pull("one"); remove("two"); collect(); await pull("two")`),
    ],
    after: ["one", "two"],
  },
  {
    name: "R13 check || pull, rm and gc: no false alarm",
    before: ["two"],
    processes: [
      repeat(5, `await pull("one"); await pull("thief"); remove("one"); collect(); remove("thief"); collect()`),
      repeat(
        25,
        `const { findings } = await $.check(store); if (findings.length > 0) throw new Error(JSON.stringify(findings))`,
      ),
    ],
    after: ["two"],
  },
];

describe("races of processes", () => {
  for (const { name, before = [], processes, after } of RACES) {
    test(name, () =>
      withRace(async (race) => {
        await withStore(race.root, async (store) => {
          for (const image of before) await pull(store, race.layout, image);
        });
        await together(race, ...processes);
        await assertOutcome(race, after);
      }),
    );
  }

  /** A process that stops at a moment, and goes on when told. */
  const stopped = (race: Race, source: string): Child => storeProcess(`${PRELUDE} ${source}`, race);

  test("R5 layers committed, image not yet || gc: the layers stay", () =>
    withRace(async (race) => {
      await using child = stopped(
        race,
        `const operation = store.begin("pull");
         const origin = await $.layoutOrigin(args.layout, "one");
         const [layer] = (await origin.open(await origin.resolve())).layers;
         const result = await operation.ingest(layer.file, { digest: layer.digest, diffId: layer.diffId });
         operation.commitLayers([result]);
         say(result.id);
         await heard();
         await pull("one");
         operation[Symbol.dispose]();
         await store.close();
         say("done");`,
      );
      const id = await child.line();
      await withStore(race.root, (store) => {
        assert.deepEqual(collect(store).items, []);
        assert.deepEqual(
          store.listLayers().map((layer) => layer.id),
          [id],
        );
      });
      child.send("go on\n");
      assert.equal(await child.line(), "done");
      await withStore(race.root, (store) => assert.ok(store.listLayers().some((layer) => layer.id === id)));
      await assertOutcome(race, ["one"]);
    }));

  test("R14 a reader keeps what it has open while others commit, remove and collect", () =>
    withRace(async (race) => {
      await withStore(race.root, async (store) => {
        await pull(store, race.layout, "one");
        using operation = store.begin("read");
        const diffIds = store.manifestsOf("one")[0]!.layers.map((layer) => layer.diffId);
        using tree = operation.openChain(diffIds);
        const layer = operation.getLayer(diffIds[0]!);
        await together(race, `remove("one"); ${repeat(5, `await pull("two"); collect(); remove("two"); collect()`)}`);
        const file = tree.reader.resolve("one");
        assert.ok(noise(40_000, "one").equals(tree.reader.read(file, 0, file.size)));
        using source = operation.openTar(layer);
        assert.ok(Buffer.concat([...source.read()]).equals(tar(base)));
      });
      await assertOutcome(race, []);
    }));

  test("R16 many tasks of one process: each download has one writer at a time", () =>
    withRace(({ root }) =>
      withStore(root, async (store) => {
        using operation = store.begin("pull");
        const digest = `sha256:${"cd".repeat(32)}` as Digest;
        let inside = 0;
        const task = async () => {
          using download = await operation.download(digest, 100);
          assert.equal(++inside, 1);
          await new Promise((resolve) => setImmediate(resolve));
          download.write(Buffer.from("x"));
          inside--;
        };
        await Promise.all(Array.from({ length: 8 }, task));
        using download = await operation.download(digest, 100);
        assert.equal(download.received, 8);
      }),
    ));

  test("R17 a stopped process: others say who it is, can give up waiting, and work beside it", () =>
    withRace(async (race) => {
      const digest = `sha256:${"ef".repeat(32)}` as Digest;
      await using child = stopped(
        race,
        `const operation = store.begin("pull");
         const download = await operation.download("${digest}", 100);
         const { tryLock } = await import(${JSON.stringify(new URL("../src/sys/index.ts", import.meta.url).href)});
         tryLock(args.root + "/gc.lock", { command: "gc" });
         say("held");
         await forever();`,
      );
      await child.line();
      child.kill("SIGSTOP");
      await withStore(race.root, async (store) => {
        assert.throws(
          () => collect(store),
          (error) => ShaleError.is(error, "FAILED_PRECONDITION") && error.message.includes(`process ${child.pid}`),
        );
        const controller = new AbortController();
        using operation = store.begin("pull");
        const waiting = operation.download(digest, 100, {
          signal: controller.signal,
          onWait: () => controller.abort(),
        });
        await assert.rejects(waiting, (error) => ShaleError.is(error, "CANCELLED"));
        await pull(store, race.layout, "one");
        assert.deepEqual(contentOf(store, "one"), race.content.one);
        await assertSound(store);
      });
    }));
});
