import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { createNewFile, injectFault, writeAt } from "./index.ts";

describe("createNewFile()", () => {
  let directory: string;
  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), "shale-new-file-"));
  });
  afterEach(() => rmSync(directory, { recursive: true, force: true }));

  for (const unnamed of [true, false]) {
    const how = unnamed ? "without a name" : "where files need a name";
    const arm = () => (unnamed ? new DisposableStack() : injectFault({ kind: "open", errno: "EOPNOTSUPP" }));

    test(`publishes over what is there, with the permissions asked for, ${how}`, () => {
      const path = join(directory, "file");
      writeFileSync(path, "old");
      using _ = arm();
      using file = createNewFile(path);
      writeAt(file.fd, Buffer.from("new"), 0);
      assert.equal(readFileSync(path, "utf8"), "old");
      file.publish();
      assert.equal(readFileSync(path, "utf8"), "new");
      assert.equal(statSync(path).mode & 0o777, 0o600);
      assert.deepEqual(readdirSync(directory), ["file"]);
    });

    test(`leaves nothing when it is not published, or that fails, ${how}`, () => {
      const path = join(directory, "file");
      {
        using _ = arm();
        using file = createNewFile(path);
        writeAt(file.fd, Buffer.from("new"), 0);
      }
      assert.deepEqual(readdirSync(directory), []);
      for (const kind of ["datasync", "rename"] as const) {
        using _ = arm();
        using _fault = injectFault({ kind, errno: "EIO" });
        assert.throws(
          () => {
            using file = createNewFile(path);
            file.publish();
          },
          { code: "EIO" },
        );
        assert.deepEqual(readdirSync(directory), []);
      }
    });
  }

  test("says ENOENT for a directory that is missing", () => {
    assert.throws(() => createNewFile(join(directory, "none/file")), { code: "ENOENT" });
  });
});
