/** containerd's own snapshotter suite, of 1.6 and of 2.1: directly, all at once, and through containerd. */
import assert from "node:assert/strict";
import { copyFileSync, mkdirSync } from "node:fs";
import { join, resolve } from "node:path";
import { before, test } from "node:test";
import { type Generation, Machine, ensureTools, needsRoot } from "./testing/machine.ts";
import { run } from "./testing/processes.ts";

let out = "";
before(async () => {
  out = await ensureTools();
});

const GENERATIONS: readonly Generation[] = ["1.6", "2.1"];
const SHALE = resolve(import.meta.dirname, "../../src/cli/main.ts");
/** Of 1.6: "still fails on some kernels with overlay", whatever the snapshotter. */
const SKIPPED_BY_THE_SUITE = ["Rename"];

/** Runs a suite to its end; each of its tests must have passed. */
async function passes(generation: Generation, env: Readonly<Record<string, string>>, inside?: Machine): Promise<void> {
  const program = join(out, `suite-${generation}`);
  const suite = inside === undefined ? program : join(inside.directory, "suite");
  if (inside !== undefined) copyFileSync(program, suite);
  // Its own tests look at the name: overlayfs is what our writable mounts are.
  const settings = { NAME: "shale", SUITE_NAME: "overlayfs", TMPDIR: "/var/tmp", ...env };
  const words = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
  const command = ["env", ...words, suite];
  const { code, stdout, stderr } = await (inside === undefined ? run(command) : inside.inside(command));
  const results = [...stdout.matchAll(/^ {4}--- (PASS|FAIL|SKIP): TestSnapshotterSuite\/(\S+)/gm)];
  const failed = results.filter(([, verdict]) => verdict === "FAIL").map(([, , name]) => name);
  const details = stdout.split("\n").filter((line) => !/unmount |helpers\.go|=== /.test(line));
  assert.deepEqual(failed, [], details.slice(-60).join("\n"));
  assert.equal(code, 0, `${details.slice(-60).join("\n")}\n${stderr}`);
  const skipped = results.filter(([, verdict]) => verdict === "SKIP").map(([, , name]) => name!);
  assert.deepEqual(
    skipped.filter((name) => !SKIPPED_BY_THE_SUITE.includes(name)),
    [],
  );
  assert.ok(results.length >= 20, `only ${results.length} tests ran`);
}

for (const generation of GENERATIONS) {
  test(`the suite of ${generation}, with a daemon for each test`, needsRoot, async () => {
    const node = `${process.execPath} --disable-warning=ExperimentalWarning ${SHALE}`;
    await passes(generation, { DAEMON_CMD: `${node} daemon --root {root} --address {sock}` });
  });
}

test("both suites with all tests at once on one daemon", needsRoot, async () => {
  await using machine = await Machine.start({ generation: "1.6", way: "plain" });
  for (const generation of GENERATIONS) await passes(generation, { SOCK: machine.socket, PARALLEL: "1", CLEAN: "1" });
});

for (const generation of GENERATIONS) {
  test(`the suite of ${generation} through containerd ${generation}`, needsRoot, async () => {
    await using machine = await Machine.start({ generation, way: "plain" });
    // The suite mounts what containerd answers: it has to be where containerd is.
    const temporary = join(machine.directory, "tmp");
    mkdirSync(temporary);
    const env = { SOCK: machine.containerdSocket, NAMESPACE: machine.namespace, TMPDIR: temporary };
    await passes(generation, env, machine);
  });
}
