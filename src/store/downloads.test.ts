import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import type { Digest } from "../oci/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { Store } from "./index.ts";
import { collect, pull, tar, withStore, writeImage } from "./testing/fixtures.ts";
import { storeProcess } from "./testing/processes.ts";

const DIGEST = `sha256:${"ab".repeat(32)}` as Digest;

const withEmptyStore = (use: (store: Store) => Promise<void>) =>
  withTemporaryDirectory((directory) => withStore(join(directory, "store"), use));
const pathOf = (store: Store) => join(store.root, "downloads", DIGEST.replace(":", "-"));

describe("StoreOperation.download()", () => {
  test("continues where another process was killed", () =>
    withEmptyStore(async (store) => {
      await using child = storeProcess(
        `const store = Store.open(args.root);
         const download = await store.begin("pull").download(args.digest, 100);
         download.write(Buffer.from("0123456789"));
         say("written");
         await forever();`,
        { root: store.root, digest: DIGEST },
      );
      await child.line();
      child.kill("SIGKILL");
      await child.ended;
      using operation = store.begin("pull");
      using download = await operation.download(DIGEST, 100);
      assert.equal(download.received, 10);
      download.write(Buffer.from("abc"));
      assert.equal(readFileSync(pathOf(store), "latin1"), "0123456789abc");
    }));

  test("belongs to one process at a time; the others wait, are told so once, and go on from there", () =>
    withEmptyStore(async (store) => {
      await using child = storeProcess(
        `const store = Store.open(args.root);
         const download = await store.begin("pull").download(args.digest, 100);
         say("held");
         await heard();
         download.write(Buffer.from("01234"));
         download[Symbol.dispose]();
         await forever();`,
        { root: store.root, digest: DIGEST },
      );
      await child.line();
      using operation = store.begin("pull");
      let waits = 0;
      const opening = operation.download(DIGEST, 100, {
        onWait: () => {
          waits++;
          child.send("go\n");
        },
      });
      using download = await opening;
      assert.equal(waits, 1);
      assert.equal(download.received, 5);
    }));

  test("can stop waiting", () =>
    withEmptyStore(async (store) => {
      using operation = store.begin("pull");
      using _ = await operation.download(DIGEST, 100);
      const controller = new AbortController();
      const second = operation.download(DIGEST, 100, { signal: controller.signal, onWait: () => controller.abort() });
      await assert.rejects(second, (error) => ShaleError.is(error, "CANCELLED"));
    }));

  test("starts again where more is there than the blob has", () =>
    withEmptyStore(async (store) => {
      writeFileSync(pathOf(store), "x".repeat(101));
      using operation = store.begin("pull");
      using download = await operation.download(DIGEST, 100);
      assert.equal(download.received, 0);
      assert.equal(readFileSync(pathOf(store)).length, 0);
    }));

  test("keeps what it has for the next try, unless it is removed", () =>
    withEmptyStore(async (store) => {
      using operation = store.begin("pull");
      {
        using download = await operation.download(DIGEST, 100);
        download.write(Buffer.from("abc"));
        download.restart();
        download.write(Buffer.from("de"));
      }
      assert.equal(readFileSync(pathOf(store), "latin1"), "de");
      {
        using download = await operation.download(DIGEST, 100);
        download.remove();
      }
      assert.deepEqual(readdirSync(join(store.root, "downloads")), []);
    }));
});

describe("collectGarbage() of downloads", () => {
  const age = (path: string, hours: number) => {
    const time = Date.now() / 1000 - hours * 3600;
    utimesSync(path, time, time);
  };

  test("removes what nobody continued for a day, and nothing that is held or younger", () =>
    withEmptyStore(async (store) => {
      const path = pathOf(store);
      writeFileSync(path, "x".repeat(5000));
      age(path, 23);
      assert.deepEqual(collect(store).items, []);
      age(path, 25);
      {
        using operation = store.begin("pull");
        using _ = await operation.download(DIGEST, 10_000);
        assert.deepEqual(collect(store).items, []);
      }
      age(path, 25);
      assert.equal(collect(store, { dryRun: true }).freed, 8192);
      assert.ok(existsSync(path));
      assert.equal(collect(store).freed, 8192);
      assert.deepEqual(readdirSync(join(store.root, "downloads")), []);
    }));

  test("removes at once what is left of a layer that is in the store", () =>
    withTemporaryDirectory(async (directory) => {
      const layout = join(directory, "layout");
      writeImage(layout, "app", [tar({ file: "content" })]);
      await withStore(join(directory, "store"), async (store) => {
        await pull(store, layout, "app");
        const { digest } = store.manifestsOf("app")[0]!.layers[0]!;
        const path = join(store.root, "downloads", digest.replace(":", "-"));
        writeFileSync(path, "x".repeat(5000)); // who committed the layer was killed before he removed it
        writeFileSync(`${path}.ranges`, "");
        const foreseen = collect(store, { dryRun: true }).items;
        assert.deepEqual(foreseen, [{ kind: "download", id: path, size: 8192, why: "its layer is in the store" }]);
        {
          using operation = store.begin("pull");
          using _ = await operation.download(digest, 10_000);
          assert.deepEqual(collect(store).items, [], "held");
        }
        assert.equal(collect(store).items.length, 1);
        assert.deepEqual(readdirSync(join(store.root, "downloads")), []);
      });
    }));

  test("removes the lock file of a process that was killed after its download was done", () =>
    withEmptyStore(async (store) => {
      writeFileSync(`${pathOf(store)}.lock`, "{}");
      collect(store);
      assert.deepEqual(readdirSync(join(store.root, "downloads")), []);
    }));
});

describe("a download in parts", () => {
  test("survives a SIGKILL with every part that was written", () =>
    withEmptyStore(async (store) => {
      await using child = storeProcess(
        `const store = Store.open(args.root);
         const download = await store.begin("pull").download(args.digest, 100);
         download.write(Buffer.from("01"));
         download.write(Buffer.from("tail"), 96);
         download.write(Buffer.from("mid"), 50);
         download.write(Buffer.from("dle"), 53);
         download.write(Buffer.from("234"));
         say("written");
         await forever();`,
        { root: store.root, digest: DIGEST },
      );
      await child.line();
      child.kill("SIGKILL");
      await child.ended;
      using operation = store.begin("pull");
      using download = await operation.download(DIGEST, 100);
      assert.equal(download.received, 5);
      assert.equal(download.bytes, 15);
      assert.deepEqual(download.gaps(), [
        { offset: 5, end: 50 },
        { offset: 56, end: 96 },
      ]);
      assert.equal(readFileSync(pathOf(store), "latin1").slice(50, 56), "middle");
    }));

  test("goes on from start to end over what is there, and the feed sees it", () =>
    withEmptyStore(async (store) => {
      using operation = store.begin("pull");
      using download = await operation.download(DIGEST, 10);
      download.write(Buffer.from("789"), 7);
      download.write(Buffer.from("01234"));
      assert.equal(download.received, 5);
      download.write(Buffer.from("56"));
      assert.equal(download.received, 10);
      assert.deepEqual(download.gaps(), []);
      const available = new BigInt64Array(download.feed().growth!)[0];
      assert.equal(available, 10n);
    }));

  test("forgets what was wrong, and nothing else", () =>
    withEmptyStore(async (store) => {
      {
        using operation = store.begin("pull");
        using download = await operation.download(DIGEST, 100);
        download.write(Buffer.alloc(60));
        download.forget(10, 20);
        assert.equal(download.received, 10);
      }
      using operation = store.begin("pull");
      using download = await operation.download(DIGEST, 100);
      assert.deepEqual(download.gaps(), [
        { offset: 10, end: 20 },
        { offset: 60, end: 100 },
      ]);
      download.restart();
      assert.equal(download.bytes, 0);
      assert.deepEqual(readdirSync(join(store.root, "downloads")).length, 2); // the file and its lock
    }));

  test("reads a torn or damaged journal as what it surely says", () =>
    withEmptyStore(async (store) => {
      const record = (offset: number, end: number) => {
        const bytes = Buffer.alloc(16);
        bytes.writeBigUInt64LE(BigInt(offset), 0);
        bytes.writeBigUInt64LE(BigInt(end), 8);
        return bytes;
      };
      writeFileSync(pathOf(store), Buffer.alloc(100));
      const records = [
        record(4, 8),
        record(9, 2),
        record(90, 101),
        Buffer.alloc(16, 0xff),
        record(20, 30).subarray(0, 9),
      ];
      writeFileSync(`${pathOf(store)}.ranges`, Buffer.concat(records));
      using operation = store.begin("pull");
      using download = await operation.download(DIGEST, 100);
      assert.equal(download.bytes, 4);
      assert.ok(download.has(4, 8));
    }));

  test("goes with its journal when nobody has continued it for a day", () =>
    withEmptyStore(async (store) => {
      {
        using operation = store.begin("pull");
        using download = await operation.download(DIGEST, 100);
        download.write(Buffer.from("tail"), 96);
      }
      assert.equal(collect(store).items.length, 0);
      utimesSync(pathOf(store), 1, 1);
      assert.deepEqual(
        collect(store).items.map(({ kind }) => kind),
        ["download"],
      );
      assert.deepEqual(readdirSync(join(store.root, "downloads")), []);
    }));
});
