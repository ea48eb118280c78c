import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { gzipSync, zstdCompressSync } from "node:zlib";
import { mapConcurrent } from "../../async/index.ts";
import { digestOf } from "../../oci/index.ts";
import type { Store } from "../../store/index.ts";
import { assertSound, collect, noise, pull, tar, withStore, writeImage } from "../../store/testing/fixtures.ts";
import { Child } from "../../sys/testing/child.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { containerdArchive, crioArchive, inlineArchive, podmanArchive, tarOf } from "../testing/sample-archives.ts";
import { exportCheckpoint, importCheckpoint, listCheckpoints } from "./index.ts";

async function withBench(use: (store: Store, directory: string) => Promise<void>): Promise<void> {
  await withTemporaryDirectory((directory) => withStore(join(directory, "store"), (store) => use(store, directory)));
}

function write(directory: string, name: string, bytes: Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, bytes);
  return path;
}

/** One process with this much memory. */
function archiveOf(memory: Buffer, name = "web"): Buffer {
  const run = { address: 0x5555_0000_0000, pages: memory.length / 4096 };
  return podmanArchive({ name, processes: [{ pid: 1, ppid: 0, comm: name, runs: [run], memory }] });
}

describe("importCheckpoint()", () => {
  for (const [dialect, bytes] of [
    ["podman", podmanArchive()],
    ["crio", crioArchive()],
    ["containerd", containerdArchive()],
    ["inline", inlineArchive()],
  ] as const) {
    test(`an archive of ${dialect} comes back bit for bit`, () =>
      withBench(async (store, directory) => {
        const imported = await importCheckpoint(store, write(directory, "in.tar", bytes));
        assert.equal(imported.diffId, digestOf(bytes));
        assert.equal(imported.name, `localhost/checkpoints/counter:${imported.diffId.slice(7, 19)}`);
        const output = join(directory, "out.tar");
        await exportCheckpoint(store, imported.name, output);
        assert.ok(readFileSync(output).equals(bytes));
        assert.equal(statSync(output).mode & 0o777, 0o600);
        const [listed] = listCheckpoints(store);
        assert.deepEqual([listed?.name, listed?.container, listed?.size], [imported.name, "counter", bytes.length]);
        await assertSound(store);
      }));
  }

  for (const [kind, compress] of [
    ["gzip", gzipSync],
    ["zstd", zstdCompressSync],
  ] as const) {
    test(`a ${kind} archive is kept as its tar`, () =>
      withBench(async (store, directory) => {
        const bytes = podmanArchive();
        const imported = await importCheckpoint(store, write(directory, "in", compress(bytes)), { name: "kept:1" });
        assert.deepEqual([imported.diffId, imported.compression], [digestOf(bytes), kind]);
        const parts: Uint8Array[] = [];
        await exportCheckpoint(store, "kept:1", async (piece) => void parts.push(Uint8Array.from(piece)));
        assert.ok(Buffer.concat(parts).equals(bytes));
      }));
  }

  test("the second checkpoint of a container costs its changes, the same one nothing", () =>
    withBench(async (store, directory) => {
      const memory = noise(8 << 20, 1);
      await importCheckpoint(store, write(directory, "1.tar", archiveOf(memory)), { name: "web:1" });
      memory.fill(7, 3_000_000, 3_000_010);
      const path = write(directory, "2.tar", archiveOf(memory));
      const second = await importCheckpoint(store, path, { name: "web:2" });
      assert.ok(second.stored < 120_000, `${second.stored} bytes for one changed page`);
      const again = await importCheckpoint(store, path, { name: "web:3" });
      assert.deepEqual([again.present, again.stored], [true, 0]);
      assert.deepEqual(
        listCheckpoints(store).map((one) => one.name),
        ["1", "2", "3"].map((tag) => `docker.io/library/web:${tag}`),
      );
    }));

  test("removing one checkpoint leaves the others whole", () =>
    withBench(async (store, directory) => {
      const memory = noise(2 << 20, 1);
      const first = archiveOf(memory);
      memory.fill(7, 1_000_000, 1_000_010);
      const second = archiveOf(memory);
      await importCheckpoint(store, write(directory, "1.tar", first), { name: "web:1" });
      await importCheckpoint(store, write(directory, "2.tar", second), { name: "web:2" });
      store.removeImage("docker.io/library/web:1");
      collect(store);
      collect(store);
      await assertSound(store);
      const output = join(directory, "out.tar");
      await exportCheckpoint(store, "web:2", output);
      assert.ok(readFileSync(output).equals(second));
      store.removeImage("docker.io/library/web:2");
      collect(store);
      collect(store);
      assert.deepEqual(readdirSync(join(directory, "store/blobs")), []);
    }));

  test("is refused for what is no checkpoint, is damaged, or compressed in another way", () =>
    withBench(async (store, directory) => {
      const cases = [
        [tarOf([{ path: "a", content: "x" }]), "INVALID_ARGUMENT"],
        [Buffer.from("not a tar"), "INVALID_ARGUMENT"],
        [podmanArchive().subarray(0, 60_000), "INVALID_ARGUMENT"],
        [gzipSync(podmanArchive()).subarray(0, 20_000), "INVALID_ARGUMENT"],
        [execFileSync("bzip2", { input: podmanArchive() }), "UNIMPLEMENTED"],
      ] as const;
      for (const [bytes, code] of cases) {
        await assert.rejects(importCheckpoint(store, write(directory, "bad", bytes)), { code });
      }
      await assert.rejects(importCheckpoint(store, join(directory, "absent")), { code: "NOT_FOUND" });
      const fine = write(directory, "fine", podmanArchive());
      await assert.rejects(importCheckpoint(store, fine, { name: "Not A Name" }), { code: "INVALID_ARGUMENT" });
      assert.deepEqual([store.listImages(), store.listLayers()], [[], []]);
      await assertSound(store);
    }));

  test("beside collections that run all the time, every checkpoint is whole", () =>
    withBench(async (store, directory) => {
      const memory = noise(1 << 20, 1);
      const archives = Array.from({ length: 12 }, (_, i) => {
        memory.fill(i, i * 65_536, i * 65_536 + 100);
        return archiveOf(memory);
      });
      let done = false;
      const collecting = (async () => {
        while (!done) {
          collect(store);
          await new Promise((resolve) => setImmediate(resolve));
        }
      })();
      await mapConcurrent(archives, 3, async (bytes, i) => {
        const path = write(directory, `${i}.tar`, bytes);
        await importCheckpoint(store, path, { name: `web:${i}` });
        if (i % 3 === 0) store.removeImage(`docker.io/library/web:${i}`);
      });
      done = true;
      await collecting;
      for (const [i, bytes] of archives.entries()) {
        if (i % 3 === 0) continue;
        const output = join(directory, `out${i}.tar`);
        await exportCheckpoint(store, `web:${i}`, output);
        assert.ok(readFileSync(output).equals(bytes), `checkpoint ${i}`);
      }
      collect(store);
      await assertSound(store);
    }));

  test("an aborted import leaves nothing", () =>
    withBench(async (store, directory) => {
      const path = write(directory, "1.tar", archiveOf(noise(1 << 20, 1)));
      const signal = AbortSignal.abort();
      await assert.rejects(importCheckpoint(store, path, { signal }));
      assert.deepEqual(readdirSync(join(directory, "store/staging")), []);
      await assertSound(store);
    }));
});

describe("exportCheckpoint()", () => {
  test("refuses an image that is no checkpoint, and a name that is not there", () =>
    withBench(async (store, directory) => {
      writeImage(join(directory, "layout"), "app", [tar({ a: "x" })]);
      await pull(store, join(directory, "layout"), "app");
      const output = join(directory, "out.tar");
      await assert.rejects(exportCheckpoint(store, "app", output), { code: "FAILED_PRECONDITION" });
      await assert.rejects(exportCheckpoint(store, "absent", output), { code: "NOT_FOUND" });
      assert.ok(!existsSync(output));
      assert.deepEqual(listCheckpoints(store), []);
    }));
});

describe("SIGKILL", () => {
  const url = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);
  const source = `
    import { Store } from ${url("../../store/index.ts")};
    import { importCheckpoint } from ${url("./index.ts")};
    const [root, ...archives] = process.argv.slice(1);
    await using store = Store.open(root, { create: true });
    for (const [i, path] of archives.entries()) await importCheckpoint(store, path, { name: "web:" + i });
  `;
  const run = (root: string, archives: readonly string[], env: Readonly<Record<string, string>>) =>
    new Child(`process.argv.push(...${JSON.stringify([root, ...archives])});${source}`, env).ended;

  test("at crash points of an import leaves a store that is sound, and takes the archive again", () =>
    withTemporaryDirectory(async (directory) => {
      const memory = noise(1 << 20, 1);
      const first = archiveOf(memory);
      memory.fill(7, 100_000, 100_010);
      const second = archiveOf(memory);
      const paths = [write(directory, "1.tar", first), write(directory, "2.tar", second)];
      const log = join(directory, "points");
      const undisturbed = await run(join(directory, "undisturbed"), paths, { SHALE_CRASH_RECORD: log });
      assert.equal(undisturbed.code, 0, undisturbed.stderr);
      const names = readFileSync(log, "utf8")
        .trimEnd()
        .split("\n")
        .map((line) => line.split("\t")[0]!);
      const counts = Map.groupBy(names, (name) => name);
      // the last one too of those that the second import passes in another state than the first
      const points = [...counts].flatMap(([name, all]) => {
        return name.startsWith("commit:") ? [`${name}#1`, `${name}#${all.length}`] : [`${name}#1`];
      });
      assert.ok(points.includes("commit:recorded#1") && points.length > 20, points.join(" "));
      let killed = 0;
      await mapConcurrent([...new Set(points)], 2, async (point, number) => {
        const root = join(directory, `store${number}`);
        const end = await run(root, paths, { SHALE_CRASH_AT: point });
        if (end.signal === "SIGKILL") killed++;
        else assert.equal(end.code, 0, `${point}: ${end.stderr}`);
        await withStore(root, async (store) => {
          assert.deepEqual(readdirSync(join(root, "staging")), [], point);
          await assertSound(store, point);
          for (const [i, bytes] of [first, second].entries()) {
            await importCheckpoint(store, paths[i]!, { name: `web:${i}` });
            const output = join(directory, `out${number}`);
            await exportCheckpoint(store, `web:${i}`, output);
            assert.ok(readFileSync(output).equals(bytes), point);
          }
          collect(store);
          await assertSound(store, `${point}, again`);
        });
      });
      assert.ok(killed > points.length * 0.7, `${killed} of ${points.length} were killed`);
    }));
});
