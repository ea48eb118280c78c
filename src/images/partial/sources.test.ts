/** Pulls in parts whose local sources have rotted, gone or lied, and pulls that were interrupted. */
import assert from "node:assert/strict";
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../../errors/index.ts";
import { parts } from "../../registry/testing/parts.ts";
import { breakAfter, type Step, status } from "../../registry/testing/scripted-server.ts";
import { Database } from "../../store/database.ts";
import { assertSound, assertTars, collect, noise, tar, withStore } from "../../store/testing/fixtures.ts";
import { storeProcess } from "../../store/testing/processes.ts";
import { askedBytes, chunkedLayer, layerIndexOf, publish, pullFrom } from "./testing/images.ts";
import { assertSame, large, noDownloads, pulledWhole, withServer } from "./testing/two-images.ts";

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
      const { root, directory, server, second } = fixture;
      const uninterrupted = await withStore(join(directory, "uninterrupted"), async (store) => {
        await pullFrom(store, server, "first");
        publish(server, "second", [second]);
        return (await pullFrom(store, server, "second")).layers[0]!.received;
      });
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
        // What had come by the kill is not asked for again, but for small gaps between what had not.
        assert.ok(
          more < uninterrupted - before + 20_000,
          `${more} bytes after ${before}, ${uninterrupted} without a kill`,
        );
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
