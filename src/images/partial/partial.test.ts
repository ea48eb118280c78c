/** Pulls in parts from a scripted registry: what is asked for, what comes out, and what goes wrong on the way. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../../errors/index.ts";
import { byCount, parts } from "../../registry/testing/parts.ts";
import {
  breakAfter,
  ok,
  type ScriptedServer,
  type Step,
  startScriptedServer,
  status,
} from "../../registry/testing/scripted-server.ts";
import { Database } from "../../store/database.ts";
import type { Store } from "../../store/index.ts";
import {
  assertSound,
  assertTars,
  collect,
  type Files,
  noise,
  tar,
  withStore,
  writeImage,
  pull as pullLayout,
} from "../../store/testing/fixtures.ts";
import { storeProcess } from "../../store/testing/processes.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import {
  askedBytes,
  type ChunkedLayer,
  chunkedLayer,
  layerIndexOf,
  publish,
  pullFrom,
  skopeoLayer,
} from "./testing/images.ts";

/** Cut into some 30 chunks. */
const large = noise(1_500_000, "large");
/** The same with a piece in the middle replaced, and another length. */
const changed = Buffer.concat([large.subarray(0, 700_000), noise(5000, "new"), large.subarray(710_000)]);
const small = Object.fromEntries(
  Array.from({ length: 60 }, (_, i) => [`etc/small-${i}`, noise(20 + i * 30, `small ${i}`)]),
);

const FIRST: Files = {
  "./": "",
  "etc/": "",
  ...small,
  large,
  same: noise(300_000, "same"),
  twice: noise(90_000, "twice"),
  flat: Buffer.concat([Buffer.alloc(3_000_000, "b"), Buffer.alloc(5000), noise(400, "tail")]),
};
const SECOND: Files = {
  "./": "",
  "etc/": "",
  ...small,
  "etc/only-here": "x".repeat(500),
  changed,
  moved: noise(300_000, "same"),
  again: noise(90_000, "twice"),
  sparse: Buffer.concat([noise(5000, "a"), Buffer.alloc(400_000), noise(5000, "b")]),
  empty: "",
  // one chunk of 3 MB that is here, and one that is not
  flat: Buffer.concat([Buffer.alloc(3_000_000, "b"), Buffer.alloc(6000), noise(400, "other tail")]),
  flatter: Buffer.alloc(2_500_000, "c"),
  fresh: noise(120_000, "fresh"),
  "fresh-again": noise(120_000, "fresh"),
};
/** Bytes of SECOND that FIRST does not have, generously: chunks about the change, two files, the ends of the sparse one. */
const MISSING = 120_000 + 10_000 + 300_000;

/** Annotations that place the TOC so many bytes further on. */
function shifted({ annotations }: ChunkedLayer, by: number): Record<string, string> {
  return Object.fromEntries(
    Object.entries(annotations).map(([key, value]) => [
      key,
      key.endsWith("-position") ? value.replace(/^\d+/, (offset) => `${Number(offset) + by}`) : value,
    ]),
  );
}

interface Fixture {
  readonly root: string;
  readonly directory: string;
  readonly server: ScriptedServer;
  readonly first: ChunkedLayer;
  readonly second: ChunkedLayer;
}

async function withServer(use: (fixture: Fixture) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    await using server = await startScriptedServer();
    const [first, second] = await Promise.all([chunkedLayer(tar(FIRST)), chunkedLayer(tar(SECOND))]);
    publish(server, "first", [first]);
    await use({ root: join(directory, "store"), directory, server, first, second });
  });
}

/** What a store says of "second" after a whole pull: the first thing that it pulls is pulled whole. */
async function pulledWhole({ directory, server }: Fixture): Promise<string[][]> {
  return await withStore(join(directory, "whole"), async (store) => {
    const result = await pullFrom(store, server, "second");
    assert.equal(result.layers[0]!.parts, undefined);
    return layerIndexOf(store, "second");
  });
}

async function assertSame(fixture: Fixture, store: Store): Promise<void> {
  const found = layerIndexOf(store, "second");
  publish(fixture.server, "second", [fixture.second]); // a server without faults
  assert.deepEqual(found, await pulledWhole(fixture));
  assertTars(store, "second");
  await assertSound(store);
}

const noDownloads = (store: Store) => assert.deepEqual(readdirSync(join(store.root, "downloads")), []);

describe("pull in parts", () => {
  test("fetches what the store does not have, and gives the same layer as a whole pull", () =>
    withServer(async (fixture) => {
      const { root, server, second } = fixture;
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        const [blob] = publish(server, "second", [second]);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts, "it was pulled whole");
        const toc = second.blob.length - second.tocOffset;
        assert.ok(layer!.received < MISSING + toc, `${layer!.received} bytes`);
        assert.equal(askedBytes(server, blob!), layer!.received);
        assert.equal(layer!.parts.referredFiles, 2);
        assert.equal(layer!.parts.repeatedBytes, 120_000);
        assert.ok(layer!.parts.copiedBytes > 4_000_000, `${layer!.parts.copiedBytes} bytes copied`);
        assert.ok(layer!.parts.zeroBytes >= 400_000);
        noDownloads(store);
        await assertSame(fixture, store);
      });
    }));

  test("finds files of a layer that came without a TOC", () =>
    withServer(async (fixture) => {
      const { root, directory, server, second } = fixture;
      await withStore(root, async (store) => {
        writeImage(join(directory, "layout"), "plain", [tar(FIRST)]);
        await pullLayout(store, join(directory, "layout"), "plain");
        publish(server, "second", [second]);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.equal(layer!.parts!.referredFiles, 2);
        const smallBytes = Object.values(small).reduce((sum, bytes) => sum + bytes.length, 0);
        // and of "flat", which is at the same path, the chunk that did not change
        assert.equal(layer!.parts!.copiedBytes, smallBytes + 3_000_000);
        await assertSame(fixture, store);
      });
    }));

  test("finds chunks of older versions of a file in layers that came without a TOC", () =>
    withServer(async (fixture) => {
      const { root, directory, server } = fixture;
      const layout = join(directory, "layout");
      await withStore(root, async (store) => {
        // a link where a file will be, another version, one that is no version any more, and a damaged layer
        writeImage(layout, "link", [tar({ "lib/": "", "lib/changed": { type: "symlink", linkTarget: "x" } })]);
        writeImage(layout, "old", [tar({ "lib/": "", "lib/changed": large, "lib/other": noise(20_000_000, "other") })]);
        writeImage(layout, "short", [tar({ "lib/": "", "lib/changed": noise(4000, "short") })]);
        writeImage(layout, "damaged", [tar({ damaged: noise(5000, "damaged") })]);
        for (const name of ["link", "old", "short", "damaged"]) await pullLayout(store, layout, name);
        const damaged = store.findLayer(store.manifestsOf("damaged")[0]!.layers[0]!.diffId)!;
        rmSync(join(root, "layers", damaged.id, "meta.erofs"));
        const second = await chunkedLayer(
          tar({ "lib/": "", "lib/changed": changed, "lib/other": noise(300_000, "new") }),
        );
        publish(server, "second", [second]);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts!.copiedBytes > 1_000_000, `${layer!.parts!.copiedBytes} bytes copied`);
        assert.ok(layer!.parts!.copiedBytes < 1_500_000);
        assertTars(store, "second");
      });
    }));

  test("pulls whole what the store has nothing of, with the bytes of the TOC that came, and not one twice", () =>
    withServer(async ({ root, server }) => {
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        const other = await chunkedLayer(tar({ other: noise(900_000, "other") }));
        const [blob] = publish(server, "other", [other]);
        const [layer] = (await pullFrom(store, server, "other")).layers;
        assert.equal(layer!.parts, undefined);
        assert.equal(askedBytes(server, blob!), blob!.size);
        assertTars(store, "other");
        noDownloads(store);
      });
    }));

  test("takes layers that skopeo made", () =>
    withServer(async (fixture) => {
      const { root, server } = fixture;
      const [one, two] = [skopeoLayer("one"), skopeoLayer("two")];
      await withStore(root, async (store) => {
        publish(server, "one", [one]);
        await pullFrom(store, server, "one");
        publish(server, "second", [two]);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts);
        assert.ok(layer!.received < two.blob.length / 2, `${layer!.received} bytes`);
        await assertSame({ ...fixture, second: two }, store);
      });
    }));

  test("takes a layer without annotations by its footer", () =>
    withServer(async (fixture) => {
      const { root, server } = fixture;
      const filler = { filler: noise(17 << 20, "filler") };
      const [one, two] = [
        await chunkedLayer(tar({ ...FIRST, ...filler })),
        await chunkedLayer(tar({ ...SECOND, ...filler })),
      ];
      await withStore(root, async (store) => {
        publish(server, "one", [one]);
        await pullFrom(store, server, "one");
        publish(server, "second", [two], { annotations: {} });
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts);
        assert.ok(layer!.received < MISSING + (two.blob.length - two.tocOffset));
        assertTars(store, "second");
      });
    }));

  const ODD: readonly {
    readonly name: string;
    readonly change: (layer: ChunkedLayer, other: ChunkedLayer) => Partial<ChunkedLayer>;
  }[] = [
    { name: "whose TOC lies outside of the blob", change: (layer) => ({ annotations: shifted(layer, 1e9) }) },
    { name: "whose TOC is somewhere else", change: (layer) => ({ annotations: shifted(layer, -4000) }) },
    { name: "with the annotations of another layer", change: (_layer, other) => ({ annotations: other.annotations }) },
    {
      name: "whose TOC has another digest",
      change: ({ annotations }) => ({
        annotations: Object.fromEntries(
          Object.entries(annotations).map(([key, value]) => [key, value.replace(/^sha256:..../, "sha256:0000")]),
        ),
      }),
    },
    {
      name: "with malformed positions",
      change: ({ annotations }) => ({
        annotations: Object.fromEntries(
          Object.entries(annotations).map(([key, value]) => [key, key.endsWith("-position") ? `${value}:-1` : value]),
        ),
      }),
    },
  ];
  for (const { name, change } of ODD) {
    test(`pulls whole a layer ${name}`, () =>
      withServer(async (fixture) => {
        const { root, server, first, second } = fixture;
        await withStore(root, async (store) => {
          await pullFrom(store, server, "first");
          publish(server, "second", [{ ...second, ...change(second, first) }]);
          const [layer] = (await pullFrom(store, server, "second")).layers;
          assert.equal(layer!.parts, undefined);
          await assertSame(fixture, store);
        });
      }));
  }

  test("does not believe a TOC that tells of other files than the tar has", () =>
    withServer(async ({ root, server, first, second }) => {
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        // Both sound in themselves: the blob of one layer, and the diffId of another.
        publish(server, "second", [{ ...second, diffId: first.diffId.replace(/.$/, "0") }]);
        await assert.rejects(pullFrom(store, server, "second"), (error) => ShaleError.is(error, "DATA_LOSS"));
        await assertSound(store);
      });
    }));

  test("asks for no TOC where the store is empty, and keeps it for later", () =>
    withServer(async ({ root, server, first }) => {
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        const asked = server.requests.filter(({ headers }) => headers.range !== undefined);
        assert.deepEqual(asked, []);
        const [id] = readdirSync(join(root, "layers"));
        const kept = readFileSync(join(root, "layers", id!, "toc"));
        assert.ok(first.blob.subarray(first.tocOffset).subarray(0, kept.length).equals(kept));
      });
    }));
});

describe("a pull in parts from a registry that", () => {
  const wrongBytes = (content: Buffer): Buffer => {
    const wrong = Buffer.from(content);
    for (let at = 1000; at < wrong.length - 30_000; at += 20_000) wrong[at]! ^= 0x55;
    return wrong;
  };
  const CASES: readonly {
    readonly name: string;
    readonly steps: (blob: Buffer) => readonly Step[];
    readonly whole?: true;
  }[] = [
    { name: "answers 200 to every range", steps: (blob) => [ok(blob)], whole: true },
    { name: "answers 200 to the first range of many", steps: (blob) => [parts(blob), ok(blob)] },
    { name: "refuses several ranges with 416", steps: (blob) => [byCount(parts(blob), status(416))] },
    { name: "refuses several ranges with 400", steps: (blob) => [byCount(parts(blob), status(400))] },
    {
      name: "refuses every range with 501",
      steps: (blob) => [
        (request, response) => (request.headers.range === undefined ? ok(blob) : status(501))(request, response),
      ],
      whole: true,
    },
    { name: "answers 429 at first", steps: (blob) => [status(429, { "retry-after": "0" }), parts(blob)] },
    {
      name: "joins all ranges",
      steps: (blob) => [parts(blob, { change: (asked) => [[asked[0]![0], asked.at(-1)![1]]] })],
    },
    {
      name: "sends parts in another order",
      steps: (blob) => [parts(blob, { change: (asked) => [...asked].reverse() })],
    },
    { name: "breaks off inside of the TOC", steps: (blob) => [breakAfter(blob, 500), parts(blob)] },
    {
      name: "breaks off inside of a part",
      steps: (blob) => [parts(blob), parts(blob, { breakAfter: 20_000 }), parts(blob)],
    },
    {
      name: "sends a part that is too short",
      steps: (blob) => [parts(blob), parts(blob, { bytesOf: (a, b) => blob.subarray(a, b) }), parts(blob)],
    },
    {
      name: "sends wrong bytes of the right length, once",
      steps: (blob) => [parts(blob), parts(wrongBytes(blob)), parts(blob)],
    },
    {
      name: "sends a wrong TOC, once",
      steps: (blob) => [
        parts(wrongBytes(Buffer.from(blob).fill(7, blob.length - 9000, blob.length - 5000))),
        parts(blob),
      ],
    },
    {
      name: "sends wrong bytes in parts, always",
      steps: (blob) => [byCount(parts(blob), parts(wrongBytes(blob)))],
      whole: true,
    },
  ];
  for (const { name, steps, whole } of CASES) {
    test(`${name} ends with the right layer`, () =>
      withServer(async (fixture) => {
        const { root, server, second } = fixture;
        await withStore(root, async (store) => {
          await pullFrom(store, server, "first");
          publish(server, "second", [second], { steps: steps(second.blob) });
          const [layer] = (await pullFrom(store, server, "second")).layers;
          assert.equal(layer!.parts === undefined, whole === true, `pulled ${whole ? "in parts" : "whole"}`);
          noDownloads(store);
          await assertSame(fixture, store);
        });
      }));
  }

  test("sends wrong bytes, whatever is asked for, ends with DATA_LOSS and an unharmed store", () =>
    withServer(async ({ root, server, second }) => {
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        publish(server, "second", [second], { steps: [parts(wrongBytes(second.blob))] });
        await assert.rejects(pullFrom(store, server, "second"), (error) => ShaleError.is(error, "DATA_LOSS"));
        assert.equal(store.findImage("second"), undefined);
        await assertSound(store);
      });
    }));
});

describe("a pull in parts with a local source that", () => {
  /** Overwrites bytes of a file of the store where `needle` is. */
  function damage(directory: string, needle: Buffer): void {
    for (const name of readdirSync(directory, { recursive: true, encoding: "utf8" })) {
      const path = join(directory, name);
      if (!statSync(path).isFile()) continue;
      const bytes = readFileSync(path);
      const at = bytes.indexOf(needle);
      if (at < 0) continue;
      bytes.fill(0x21, at, at + 16);
      writeFileSync(path, bytes);
      return;
    }
    assert.fail("the bytes are not in the store");
  }

  const SOURCES: readonly { readonly name: string; readonly needle: Buffer; readonly place: "blobs" | "layers" }[] = [
    { name: "is referred to as a whole", needle: noise(300_000, "same").subarray(150_000, 150_100), place: "blobs" },
    { name: "gives a chunk", needle: large.subarray(100_000, 100_100), place: "blobs" },
    { name: "is inside of a metadata image", needle: noise(920, "small 30").subarray(100, 200), place: "layers" },
  ];
  for (const { name, needle, place } of SOURCES) {
    test(`${name} and has rotted is fetched instead, and taken out of use`, () =>
      withServer(async (fixture) => {
        const { root, server, first, second } = fixture;
        await withStore(root, async (store) => {
          await pullFrom(store, server, "first");
          publish(server, "other", [await chunkedLayer(tar({ other: noise(200_000, "other") }))]);
          await pullFrom(store, server, "other"); // has the chunk index of "first" made
          damage(join(root, place), needle);
          publish(server, "second", [second]);
          const [layer] = (await pullFrom(store, server, "second")).layers;
          assert.ok(layer!.parts, "it was pulled whole");
          assertTars(store, "second");
          assertTars(store, "second");
          assert.deepEqual(store.listDamagedLayers(), [first.diffId]);
          // What was damaged comes back, in parts too.
          const repaired = (await pullFrom(store, server, "first")).layers[0]!;
          assert.ok(repaired.parts);
          assert.deepEqual(store.listDamagedLayers(), []);
          collect(store);
          await assertSound(store);
          assert.deepEqual(layerIndexOf(store, "second"), await pulledWhole(fixture));
        });
      }));
  }

  test("is gone is fetched instead", () =>
    withServer(async ({ root, server, second }) => {
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        rmSync(join(root, "blobs"), { recursive: true });
        mkdirSync(join(root, "blobs"));
        publish(server, "second", [second]);
        await pullFrom(store, server, "second");
        assertTars(store, "second");
      });
    }));

  test("has another digest than its row says is fetched instead, and only the row goes", () =>
    withServer(async ({ root, server, second }) => {
      await withStore(root, async (store) => {
        await pullFrom(store, server, "first");
        const tiny = await chunkedLayer(tar({ tiny: noise(200_000, "large, but other") }));
        publish(server, "tiny", [tiny]);
        await pullFrom(store, server, "tiny"); // makes the rows of "first"
        using database = Database.open(join(root, "shale.db"));
        const rows = database.get("SELECT count(*) AS n FROM chunks");
        assert.ok(Number(rows!.n) > 60);
        database.run("UPDATE chunks SET offset = offset + 64 WHERE inline = 0");
        publish(server, "second", [second]);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts);
        assertTars(store, "second");
        assert.deepEqual(store.listDamagedLayers(), []);
        await assertSound(store);
      });
    }));
});

describe("an interrupted pull in parts", () => {
  test("goes on after a SIGKILL with the parts that had come", () =>
    withServer(async (fixture) => {
      const { root, server, second } = fixture;
      await withStore(root, (store) => pullFrom(store, server, "first"));
      let halted = 0;
      const halt: Step = (request, response) => {
        // everything but the last bytes of the body, then nothing more
        const held = new Proxy(response, {
          get(target, key) {
            if (key === "end")
              return (body: Uint8Array) => void target.write(body.subarray(0, body.length - 3000), () => halted++);
            const value = Reflect.get(target, key) as unknown;
            return typeof value === "function" ? value.bind(target) : value;
          },
        });
        parts(second.blob)(request, held);
      };
      publish(server, "second", [second], { steps: [parts(second.blob), halt] });
      await using child = storeProcess(
        `const { pullFrom } = await import(args.images);
         const store = Store.open(args.root);
         pullFrom(store, { host: args.host }, "second").catch(() => {});
         await forever();`,
        { root, host: server.host, images: new URL("./testing/images.ts", import.meta.url).href },
      );
      const journal = () => readdirSync(join(root, "downloads")).filter((name) => name.endsWith(".ranges"));
      const downloaded = () =>
        journal().reduce((sum, name) => {
          const bytes = readFileSync(join(root, "downloads", name));
          let ranges = 0;
          for (let at = 0; at + 16 <= bytes.length; at += 16) {
            ranges += Number(bytes.readBigUInt64LE(at + 8) - bytes.readBigUInt64LE(at));
          }
          return sum + ranges;
        }, 0);
      const tocBytes = second.blob.length - second.tocOffset;
      while (halted === 0 || downloaded() < tocBytes + 100_000) await new Promise((resolve) => setTimeout(resolve, 10));
      const before = downloaded();
      child.kill("SIGKILL");
      await child.ended;

      await withStore(root, async (store) => {
        const [blob] = publish(server, "second", [second]);
        const asked = askedBytes(server, blob!);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts);
        const more = askedBytes(server, blob!) - asked;
        assert.equal(more, layer!.received);
        assert.ok(more < 20_000, `${more} bytes after ${before}`);
        noDownloads(store);
        await assertSame(fixture, store);
      });
    }));

  test("is continued by a whole pull, and the other way round", () =>
    withServer(async (fixture) => {
      const { root, server, second } = fixture;
      const broken =
        (after: number): Step =>
        (request, response) => {
          breakAfter(second.blob, after)(request, response);
        };
      await withStore(root, async (store) => {
        // whole, since the store is empty; it breaks off for good after 100,000 bytes
        publish(server, "second", [second], { steps: [broken(100_000), status(404)] });
        await assert.rejects(pullFrom(store, server, "second"), (error) => ShaleError.is(error, "NOT_FOUND"));
        await pullFrom(store, server, "first");
        const [blob] = publish(server, "second", [second]);
        const asked = askedBytes(server, blob!);
        const [layer] = (await pullFrom(store, server, "second")).layers;
        assert.ok(layer!.parts);
        assert.ok(askedBytes(server, blob!) - asked <= second.blob.length - 100_000);
        await assertSame(fixture, store);
      });
    }));
});
