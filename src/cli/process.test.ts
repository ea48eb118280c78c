/** The real process: exit codes, signals and closed pipes. */
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { promisify } from "node:util";

const MAIN = join(import.meta.dirname, "main.ts");
const TEST_MAIN = join(import.meta.dirname, "testing/main.ts");

/** Starts `wait`, sends the signals one after another, and tells how it ended. */
async function stopWith(args: readonly string[], signals: readonly NodeJS.Signals[]) {
  const child = spawn(process.execPath, [TEST_MAIN, "wait", ...args], { stdio: ["ignore", "pipe", "pipe"] });
  const output = { stdout: "", stderr: "" };
  const said = (text: string) =>
    new Promise<void>((resolve) => {
      const look = () => {
        if (!output.stdout.includes(text)) return;
        child.stdout.off("data", look);
        resolve();
      };
      child.stdout.on("data", look);
      look();
    });
  child.stdout.on("data", (chunk: Buffer) => {
    output.stdout += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    output.stderr += chunk.toString();
  });
  const closed = once(child, "close");
  await said("waiting");
  for (const signal of signals) {
    child.kill(signal);
    await (signals.length > 1 ? Promise.race([said("cleaning up"), closed]) : undefined);
  }
  const [code, signal] = await closed;
  return { code, signal, ...output };
}

describe("runProcess()", () => {
  for (const { signal, code } of [
    { signal: "SIGINT", code: 130 },
    { signal: "SIGTERM", code: 143 },
  ] as const) {
    test(`${signal} lets the command clean up and ends with ${code}`, async () => {
      const ended = await stopWith([], [signal]);
      assert.equal(ended.stdout, "waiting\ncleaning up\n");
      assert.equal(ended.stderr, `shale: Stopped by ${signal}\n`);
      assert.equal(ended.code, code);
    });
  }

  test("a second signal kills a command that doesn't end", async () => {
    assert.equal((await stopWith(["forever"], ["SIGINT", "SIGTERM"])).signal, "SIGTERM");
  });

  test("a closed pipe is success, and quiet", async () => {
    const child = spawn(process.execPath, [TEST_MAIN, "fail", "pipe"], { stdio: ["ignore", "pipe", "pipe"] });
    let stderr = "";
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.stdout.once("data", () => child.stdout.destroy());
    const [code] = await once(child, "close");
    assert.equal(stderr, "");
    assert.equal(code, 0);
  });

  test("an output that takes no more is an error in one line", async () => {
    const full = openSync("/dev/full", "w");
    const child = spawn(process.execPath, [TEST_MAIN, "fail", "pipe"], { stdio: ["ignore", full, "pipe"] });
    closeSync(full);
    let stderr = "";
    child.stderr!.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    const [code] = await once(child, "close");
    assert.equal(stderr, "shale: Cannot write the output: no space left on device\n");
    assert.equal(code, 1);
  });

  test("the exit code is the command's, and the output is complete", async () => {
    await assert.rejects(promisify(execFile)(process.execPath, [MAIN, "no-such-command"]), { code: 2 });
    const { stdout } = await promisify(execFile)(process.execPath, [MAIN, "--version"]);
    assert.match(stdout, /^shale \d+\.\d+\.\d+ \(Node \d+\.\d+\.\d+, linux\/\w+\)\n$/);
  });
});
