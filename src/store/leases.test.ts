import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { injectFault, tryLock } from "../sys/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import type { StoreContext } from "./context.ts";
import { Database } from "./database.ts";
import { Store } from "./index.ts";
import { Layout } from "./layout.ts";
import { currentEpoch, Lease, livingLeases, recoverFromReboot, recoverStaging } from "./leases.ts";
import { storeProcess } from "./testing/processes.ts";

async function withContext(use: (context: StoreContext) => void | Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const root = join(directory, "store");
    await Store.open(root, { create: true }).close();
    const layout = new Layout(root);
    using database = Database.open(layout.database);
    await use({ layout, database });
  });
}

/** A process that holds a lease with something staged and something in place, which it never committed. */
function holder(root: string) {
  return storeProcess(
    `
    import { Layout } from ${JSON.stringify(new URL("layout.ts", import.meta.url).href)};
    import { Lease } from ${JSON.stringify(new URL("leases.ts", import.meta.url).href)};
    import { Database } from ${JSON.stringify(new URL("database.ts", import.meta.url).href)};
    import { mkdirSync, writeFileSync } from "node:fs";
    const layout = new Layout(args.root);
    const lease = Lease.begin(layout, Database.open(layout.database), "hold a lease");
    const { id, directory } = lease.stage();
    writeFileSync(directory + "/blob", "staged");
    writeFileSync(layout.blob(id), "in place");
    mkdirSync(layout.layer(id));
    writeFileSync(layout.mergedImage(id), "in place");
    say(lease.id);
    await forever();`,
    { root },
  );
}

const inPlace = ({ layout }: StoreContext) =>
  [layout.blobs, layout.layers, layout.merged, layout.staging].flatMap((directory) => readdirSync(directory));

describe("recoverStaging()", () => {
  test("leaves a living process's work alone, and removes all of it once the process is dead", () =>
    withContext(async (context) => {
      const { layout, database } = context;
      await using child = holder(layout.root);
      const id = await child.line();
      assert.equal(recoverStaging(layout, database), 0);
      assert.equal(inPlace(context).length, 4);
      assert.deepEqual([...livingLeases(layout).ids], [id]);
      child.kill("SIGKILL");
      await child.ended;
      assert.deepEqual([...livingLeases(layout).ids], [], "a dead lease protects nothing");
      assert.equal(inPlace(context).length, 4, "looking at leases removes nothing that is staged");
      assert.equal(recoverStaging(layout, database), 1);
      assert.deepEqual(inPlace(context), []);
      assert.deepEqual(readdirSync(layout.leases), []);
    }));

  test("keeps what has a row", () =>
    withContext(({ layout, database }) => {
      mkdirSync(join(layout.staging, "1-aaaaaaaaaaaa/0"), { recursive: true });
      writeFileSync(layout.blob("1-aaaaaaaaaaaa-0"), "committed");
      database.run("INSERT INTO blobs (id, size) VALUES ('1-aaaaaaaaaaaa-0', 4096)");
      recoverStaging(layout, database);
      assert.ok(existsSync(layout.blob("1-aaaaaaaaaaaa-0")));
      assert.deepEqual(readdirSync(layout.staging), []);
    }));
});

describe("recoverFromReboot()", () => {
  test("removes what neither a row nor a lease knows, once a boot", () =>
    withContext(({ layout, database }) => {
      const stray = () => writeFileSync(layout.blob("1-bbbbbbbbbbbb-0"), "back after a power cut");
      using lease = Lease.begin(layout, database, "pull");
      writeFileSync(layout.blob(`${lease.id}-0`), "of a living operation");
      stray();
      recoverFromReboot(layout, database);
      assert.equal(readdirSync(layout.blobs).length, 2, "the store was opened in this boot already");
      database.run("UPDATE state SET key = 'boot before' WHERE key LIKE 'boot %'");
      recoverFromReboot(layout, database);
      assert.deepEqual(readdirSync(layout.blobs), [`${lease.id}-0`]);
      stray();
      recoverFromReboot(layout, database);
      assert.equal(readdirSync(layout.blobs).length, 2, "a second time in one boot");
    }));
});

describe("Lease", () => {
  test("release() removes what was staged, and what a failed commit had moved into place", () =>
    withContext((context) => {
      const { layout, database } = context;
      const lease = Lease.begin(layout, database, "pull");
      const { id, directory } = lease.stage();
      writeFileSync(join(directory, "blob"), "staged");
      writeFileSync(layout.blob(id), "in place without a row");
      lease.release();
      lease.release();
      assert.deepEqual(inPlace(context), []);
      assert.deepEqual(readdirSync(layout.leases), []);
    }));

  test("release() that fails leaves its work for the next opener", () =>
    withContext((context) => {
      const { layout, database } = context;
      const lease = Lease.begin(layout, database, "pull");
      const { directory } = lease.stage();
      writeFileSync(join(directory, "blob"), "staged");
      {
        using _ = injectFault({ kind: "rmdir", errno: "EIO" });
        assert.throws(() => lease.release(), { code: "EIO" });
      }
      assert.equal(recoverStaging(layout, database), 1);
      assert.deepEqual(inPlace(context), []);
      assert.deepEqual(readdirSync(layout.leases), []);
    }));

  test("livingLeases() gives the lowest epoch, without the caller's own", () =>
    withContext(({ layout, database }) => {
      assert.equal(livingLeases(layout).oldestEpoch, Infinity);
      using old = Lease.begin(layout, database, "old");
      database.run("UPDATE state SET value = 7 WHERE key = 'epoch'");
      using young = Lease.begin(layout, database, "young");
      assert.equal(currentEpoch(database), 7);
      assert.equal(livingLeases(layout).oldestEpoch, 1);
      assert.equal(livingLeases(layout, old.id).oldestEpoch, 7);
      assert.deepEqual([...livingLeases(layout, young.id).ids], [old.id]);
    }));

  test("a file among the leases that is not ours holds everything back rather than nothing", () =>
    withContext(({ layout }) => {
      using _ = tryLock(join(layout.leases, "strange"));
      assert.equal(livingLeases(layout).oldestEpoch, 0);
    }));
});
