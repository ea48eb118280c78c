/** Writing and restoring are killed before each thing that they change: what has its name is complete, and the next run needs no help. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { openArchive } from "../../src/checkpoint/archive/index.ts";
import { restoreCheckpoint } from "../../src/checkpoint/restore.ts";
import { makeMetadata, noise } from "../../src/checkpoint/testing/samples.ts";
import { describeTree } from "../../src/checkpoint/testing/trees.ts";
import { writeCheckpoint } from "../../src/checkpoint/write.ts";
import { mknod } from "../../src/sys/libc.ts";
import { needsRoot, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";

const DRIVER = join(import.meta.dirname, "driver.ts");

function drive(step: string, directory: string, env: Readonly<Record<string, string>> = {}): Promise<string | number> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--disable-warning=ExperimentalWarning", DRIVER, step, directory], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "inherit"],
    });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve(signal ?? code ?? "nothing"));
  });
}

async function makeInput(directory: string): Promise<void> {
  const input = join(directory, "in");
  for (const name of ["upper/etc", "volume"]) mkdirSync(join(input, name), { recursive: true });
  makeMetadata(join(input, "meta"));
  writeFileSync(join(input, "upper/etc/large"), noise(40_000));
  mknod(join(input, "upper/gone"), 0o020000, 0, 0);
  writeFileSync(join(input, "volume/file"), "content");
  const sources = {
    metadata: join(input, "meta"),
    rootfsDiff: join(input, "upper"),
    volumes: [{ name: "data", directory: join(input, "volume") }],
  };
  await writeCheckpoint(sources, { output: join(input, "archive"), writer: "test" });
}

/** Runs `step` with a kill before its first, second, ... change, until one comes through. */
async function killAtEach(step: string, directory: string, check: (point: string) => Promise<void>): Promise<number> {
  const record = join(directory, "points");
  const out = join(directory, "out");
  mkdirSync(out);
  assert.equal(await drive(step, directory, { SHALE_CRASH_RECORD: record }), 0);
  const points = readFileSync(record, "utf8").trim().split("\n");
  rmSync(out, { recursive: true });
  for (const [index, point] of points.entries()) {
    mkdirSync(out);
    assert.equal(await drive(step, directory, { SHALE_CRASH_AT: `${index + 1}` }), "SIGKILL", point);
    await check(`killed before ${point}`);
    rmSync(out, { recursive: true });
  }
  return points.length;
}

describe("killed at every point", needsRoot, () => {
  test("checkpoint write leaves no archive, or a complete one, and at most one name of its own beside it", async () => {
    await withTemporaryDirectory(async (directory) => {
      await makeInput(directory);
      const expected = readFileSync(join(directory, "in/archive"));
      const count = await killAtEach("write", directory, async (where) => {
        const out = join(directory, "out");
        const names = readdirSync(out);
        assert.ok(names.length <= 1, `${where}: ${names.join()}`);
        if (existsSync(join(out, "archive"))) assert.ok(readFileSync(join(out, "archive")).equals(expected), where);
        await using archive = await openArchive(join(directory, "in/archive"));
        assert.ok(archive.size !== undefined);
      });
      assert.ok(count >= 5, `${count} points`);
    });
  });

  test("checkpoint restore leaves each directory absent or complete, and the next one cleans up", async () => {
    await withTemporaryDirectory(async (directory) => {
      await makeInput(directory);
      const input = join(directory, "in");
      const expected = { upper: describeTree(join(input, "upper")), volume: describeTree(join(input, "volume")) };
      const count = await killAtEach("restore", directory, async (where) => {
        const out = join(directory, "out");
        for (const name of ["upper", "volume"] as const) {
          if (existsSync(join(out, name))) assert.deepEqual(describeTree(join(out, name)), expected[name], where);
        }
        // What is complete is in the way of a second restore; its user takes it away.
        for (const name of ["upper", "volume", "bundle"]) rmSync(join(out, name), { recursive: true, force: true });
        await using archive = await openArchive(join(input, "archive"));
        await restoreCheckpoint(archive, {
          upper: join(out, "upper"),
          bundle: join(out, "bundle"),
          volumes: [{ name: "data", directory: join(out, "volume") }],
        });
        assert.deepEqual(readdirSync(out).sort(), ["bundle", "upper", "volume"], where);
        assert.deepEqual(describeTree(join(out, "upper")), expected.upper, where);
      });
      assert.ok(count >= 25, `${count} points`);
    });
  });
});
