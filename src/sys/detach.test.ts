import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { delay } from "../async/index.ts";
import { runDetaching } from "./index.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

describe("runDetaching()", () => {
  test("resolves when the command ends, while what it started goes on and is heard", async () => {
    await withTemporaryDirectory(async (directory) => {
      const output = join(directory, "output");
      const go = join(directory, "go");
      const script = `echo first; (while [ ! -e ${go} ]; do sleep 0.01; done; echo second) & `;
      const { code } = await runDetaching("sh", ["-c", script], { output });
      assert.equal(code, 0);
      const { writeFileSync } = await import("node:fs");
      writeFileSync(go, "");
      while (readFileSync(output, "utf8") !== "first\nsecond\n") await delay(5);
    });
  });

  test("gives what was said when the command fails", async () => {
    await withTemporaryDirectory(async (directory) => {
      const output = join(directory, "output");
      assert.deepEqual(await runDetaching("sh", ["-c", "echo why >&2; exit 3"], { output }), {
        code: 3,
        said: "why\n",
      });
      await assert.rejects(runDetaching(join(directory, "none"), [], { output }), { code: "NOT_FOUND" });
    });
  });
});
