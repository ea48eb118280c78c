import assert from "node:assert/strict";
import { chownSync, mkdirSync, readlinkSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { bindMount, unmount } from "./mounts.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";
import { createUserNamespace } from "./user-namespace.ts";

const IDS = [{ inside: 0, outside: 100_000, length: 65_536 }] as const;

test("createUserNamespace() makes one that lives without a process, and maps the ids of a bind mount", () =>
  withTemporaryDirectory(async (directory) => {
    const source = join(directory, "source");
    const target = join(directory, "target");
    mkdirSync(source);
    mkdirSync(target);
    writeFileSync(join(source, "file"), "");
    chownSync(join(source, "file"), 7, 8);
    {
      using namespace = await createUserNamespace(IDS, [{ inside: 0, outside: 5000, length: 100 }]);
      assert.notEqual(readlinkSync(`/proc/self/fd/${namespace.fd}`), readlinkSync("/proc/self/ns/user"));
      bindMount(source, target, { mapping: namespace });
    }
    try {
      const { uid, gid } = statSync(join(target, "file"));
      assert.deepEqual([uid, gid], [100_007, 5008]);
      chownSync(join(target, "file"), 100_003, 5004);
      assert.equal(statSync(join(source, "file")).uid, 3);
    } finally {
      unmount(target);
    }
  }));

test("createUserNamespace() says what the kernel does not take", async () => {
  await assert.rejects(createUserNamespace([{ inside: 0, outside: 0, length: 0 }], IDS), {
    code: "FAILED_PRECONDITION",
  });
});

test("bindMount() says when a file system can't map ids", () =>
  withTemporaryDirectory(async (directory) => {
    const target = join(directory, "target");
    mkdirSync(target);
    using namespace = await createUserNamespace(IDS, IDS);
    assert.throws(() => bindMount("/proc", target, { mapping: namespace }), { code: "FAILED_PRECONDITION" });
  }));
