/** Pulls in parts from a scripted registry: what is asked for, what comes out, and what goes wrong on the way. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../../errors/index.ts";
import { byCount, parts } from "../../registry/testing/parts.ts";
import { breakAfter, ok, type Step, status } from "../../registry/testing/scripted-server.ts";
import {
  assertSound,
  assertTars,
  noise,
  tar,
  withStore,
  writeImage,
  pull as pullLayout,
} from "../../store/testing/fixtures.ts";
import { askedBytes, type ChunkedLayer, chunkedLayer, publish, pullFrom, skopeoLayer } from "./testing/images.ts";
import {
  assertSame,
  changed,
  FIRST,
  large,
  MISSING,
  noDownloads,
  SECOND,
  shifted,
  small,
  withServer,
} from "./testing/two-images.ts";

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
