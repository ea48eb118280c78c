import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import * as processes from "./process.ts";
import { withTemporaryDirectory } from "./testing/filesystems.ts";

test("run() gives output, input and exit code, and does not throw for a failing command", async () => {
  const result = await processes.run("sh", ["-c", "cat; echo problem >&2; exit 3"], { input: "in" });
  assert.deepEqual(
    [result.stdout.toString(), result.stderr.toString(), result.code, result.killedBy],
    ["in", "problem\n", 3, undefined],
  );
  const killed = await processes.run("sh", ["-c", "kill -TERM $$"]);
  assert.deepEqual([killed.code, killed.killedBy], [undefined, "SIGTERM"]);
});

test("run() succeeds for a command that leaves most of its input unread", async () => {
  const result = await processes.run("head", ["-c1"], { input: Buffer.alloc(1 << 20, "x") });
  assert.deepEqual([result.code, result.stdout.toString()], [0, "x"]);
});

for (const [name, args, options, code] of [
  ["a command that is not there", ["shale-no-such-command"], {}, "NOT_FOUND"],
  ["a command over its time", ["sleep", "1000"], { timeoutMs: 1 }, "UNAVAILABLE"],
  ["endless output", ["yes"], { maxOutput: 1000 }, "RESOURCE_EXHAUSTED"],
  ["a signal that is aborted already", ["sleep", "1000"], { signal: AbortSignal.abort() }, "CANCELLED"],
] as const) {
  test(`run() rejects with ${code} for ${name}`, async () => {
    const [command, ...rest] = args;
    await assert.rejects(async () => processes.run(command, rest, options), { code });
  });
}

test("run() settles after an abort only when the command has ended", () =>
  withTemporaryDirectory(async (directory) => {
    const controller = new AbortController();
    const started = join(directory, "pid");
    const running = processes.run(
      "sh",
      ["-c", `echo $$ > ${started}.tmp; mv ${started}.tmp ${started}; exec sleep 1000`],
      {
        signal: controller.signal,
      },
    );
    while (!existsSync(started)) await new Promise((resolve) => setTimeout(resolve, 1));
    controller.abort();
    await assert.rejects(running, { code: "CANCELLED" });
    assert.equal(processes.findProcess(Number(readFileSync(started, "utf8"))), undefined);
  }));

test("which() finds executable files only, in the order of the path", () =>
  withTemporaryDirectory((directory) => {
    const [a, b, c] = ["a", "b", "c"].map((name) => join(directory, name)) as [string, string, string];
    for (const path of [a, b, c]) mkdirSync(path);
    mkdirSync(join(a, "tool")); // a directory is no command
    writeFileSync(join(b, "tool"), "", { mode: 0o644 });
    writeFileSync(join(c, "tool"), "");
    chmodSync(join(c, "tool"), 0o755);
    assert.equal(processes.which("tool", [a, b, "", "/nowhere", c].join(":")), join(c, "tool"));
    assert.equal(processes.which("tool", a), undefined);
    assert.ok(processes.which("sh"));
  }));

test("processStartTime() is stable, differs from that of pid 1, and is undefined for no process", () => {
  const own = processes.processStartTime();
  assert.ok(own !== undefined && own > 0);
  assert.equal(processes.findProcess(process.pid)?.startTime, own);
  assert.notEqual(processes.processStartTime(1), own);
  assert.equal(processes.processStartTime(2 ** 22 + 1), undefined); // over the kernel's PID_MAX_LIMIT
});

test("bootId(), kernelAtLeast(), hasCapability() and peakMemory() read the kernel's files", () => {
  assert.match(processes.bootId(), /^[0-9a-f-]{36}$/);
  const { major, minor } = processes.kernelVersion();
  assert.ok(processes.kernelAtLeast(major, minor));
  assert.ok(processes.kernelAtLeast(major - 1, minor + 1));
  assert.equal(processes.kernelAtLeast(major, minor + 1), false);
  assert.equal(processes.kernelAtLeast(major + 1, 0), false);
  assert.equal(processes.hasCapability(processes.Capability.SYS_ADMIN), processes.isRoot());
  assert.ok(processes.peakMemory() >= process.memoryUsage.rss() / 2);
});
