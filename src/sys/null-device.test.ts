import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { run, withNullDevice } from "./index.ts";
import {
  FSCONFIG_CMD_CREATE,
  fsconfig,
  fsmount,
  fsopen,
  MNT_DETACH,
  MOUNT_ATTR_NODEV,
  moveMount,
  umount,
} from "./libc.ts";
import { needsRoot, withTemporaryDirectory } from "./testing/filesystems.ts";

async function write(directory: string): Promise<void> {
  const path = join(directory, "nowhere");
  const script = `head -c 3000000 /dev/zero >${path}; chmod 644 ${path}; head -c 10 /dev/zero >${path}`;
  const result = await withNullDevice(path, () => run("sh", ["-ec", script], { timeoutMs: 20_000 }));
  assert.equal(result.code, 0, result.stderr.toString());
  assert.deepEqual(readdirSync(directory), []);
}

describe("withNullDevice()", needsRoot, () => {
  test("takes what is written, and goes", () => withTemporaryDirectory(write));

  test("is a pipe where devices can't be opened", () =>
    withTemporaryDirectory(async (directory) => {
      const context = fsopen("tmpfs");
      fsconfig(context, FSCONFIG_CMD_CREATE, null, null);
      moveMount(fsmount(context, MOUNT_ATTR_NODEV), directory);
      try {
        await write(directory);
      } finally {
        umount(directory, MNT_DETACH);
      }
    }));

  test("goes when the work fails", () =>
    withTemporaryDirectory(async (directory) => {
      const failing = withNullDevice(join(directory, "x"), () => Promise.reject(new RangeError("work")));
      await assert.rejects(failing, { name: "RangeError" });
      assert.deepEqual(readdirSync(directory), []);
    }));
});
