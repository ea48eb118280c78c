import assert from "node:assert/strict";
import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, test } from "node:test";
import { injectFault, tryLock, writeAt } from "../sys/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { lockPath, type PublishOptions, publishWithSidecar } from "./publish.ts";
import { type Sidecar, sidecarPath } from "./sidecar.ts";

const OLD = Buffer.from("made before");
const NEW = Buffer.from("made anew, longer");

function sidecar(request: string, size: number): Sidecar {
  const image = { manifest: "sha256:00", config: "sha256:00", platform: "linux/amd64", chainId: undefined, layers: [] };
  const fileSystem = { type: "erofs", blockSize: 4096, uuid: "", size } as const;
  return { version: 1, format: "disk", image, fileSystem, size, request };
}

function publish(target: string, bytes: Buffer, options: PublishOptions) {
  return publishWithSidecar(target, options, async (file) => {
    writeAt(file, bytes, 0);
    return sidecar(options.request, bytes.length);
  });
}

async function withOld(body: (target: string) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    const target = join(directory, "disk");
    const { shared } = await publish(target, OLD, { request: "this" });
    assert.equal(shared, false);
    await body(target);
  });
}

describe("publishWithSidecar()", () => {
  test("takes what is there where that will do", () =>
    withOld(async (target) => {
      const { shared, sidecar: found } = await publish(target, NEW, { request: "this", reuse: true });
      assert.equal(shared, true);
      assert.deepEqual(JSON.parse(JSON.stringify(found)), JSON.parse(readFileSync(sidecarPath(target), "utf8")));
      assert.deepEqual(readFileSync(target), OLD);
    }));

  for (const kind of ["create", "write", "datasync"] as const) {
    test(`leaves what is there when the new sidecar can't be stored: ${kind}`, () =>
      withOld(async (target) => {
        const described = readFileSync(sidecarPath(target));
        {
          using _ = injectFault({ kind, path: /\.json\.tmp$/, errno: "ENOSPC" });
          await assert.rejects(publish(target, NEW, { request: "that" }), { code: "ENOSPC" });
        }
        assert.deepEqual(readFileSync(target), OLD);
        assert.deepEqual(readFileSync(sidecarPath(target)), described);
        assert.deepEqual(readdirSync(dirname(target)).sort(), ["disk", "disk.json"]);
      }));
  }

  const ANEW: readonly { why: string; request?: string; reuse?: boolean; spoil?: (target: string) => void }[] = [
    { why: "nobody said that it will do", reuse: false },
    { why: "it is another export", request: "that" },
    { why: "it is cut off", spoil: (target) => truncateSync(target, 3) },
    { why: "its sidecar is no JSON", spoil: (target) => writeFileSync(sidecarPath(target), "{") },
    {
      why: "its sidecar is of a newer version",
      spoil: (target) => writeFileSync(sidecarPath(target), `{"version":9,"request":""}`),
    },
  ];
  for (const { why, request = "this", reuse = true, spoil } of ANEW) {
    test(`writes anew where ${why}`, () =>
      withOld(async (target) => {
        spoil?.(target);
        const { shared } = await publish(target, NEW, { request, reuse });
        assert.equal(shared, false);
        assert.deepEqual(readFileSync(target), NEW);
        assert.equal((JSON.parse(readFileSync(sidecarPath(target), "utf8")) as Sidecar).size, NEW.length);
      }));
  }

  test("shares the work of a writer that had only the sidecar left to write when it came", () =>
    withOld(async (target) => {
      const described = readFileSync(sidecarPath(target));
      rmSync(sidecarPath(target));
      const lock = tryLock(lockPath(target));
      assert.ok(lock);
      const waiting = publish(target, NEW, { request: "this" });
      writeFileSync(sidecarPath(target), described);
      lock.release({ unlink: true });
      assert.equal((await waiting).shared, true);
      assert.deepEqual(readFileSync(target), OLD);
    }));

  test("does the work itself when the writer that it waited for gave up", () =>
    withOld(async (target) => {
      const lock = tryLock(lockPath(target));
      assert.ok(lock);
      const waiting = publish(target, NEW, { request: "this" });
      lock.release({ unlink: true });
      assert.equal((await waiting).shared, false);
      assert.deepEqual(readFileSync(target), NEW);
    }));
});
