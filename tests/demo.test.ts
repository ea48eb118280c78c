/** `shale demo` as a user runs it: a real image of this host, a real registry, real mounts; and nothing of it left behind. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { writeLayout } from "../src/cli/testing/layout.ts";

const MAIN = join(import.meta.dirname, "../src/cli/main.ts");
const ROOT = process.geteuid?.() === 0;
const AS_ROOT = { skip: ROOT ? false : "needs root" };
const NOBODY = ROOT ? { uid: 65534, gid: 65534 } : {};
const work = mkdtempSync(join(tmpdir(), "shale-demo-test-"));
/** Where the command makes its temporary directory; the tests look into it afterwards. */
const temporary = join(work, "tmp");
const layout = join(work, "layout");

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** `stopAt`: SIGINT as soon as stdout has this text. */
function demo(args: readonly string[], options: { privileged?: boolean; stopAt?: string } = {}): Promise<Ended> {
  const child = spawn(process.execPath, [MAIN, "demo", ...args], {
    env: { PATH: process.env.PATH, HOME: work, LANG: "C.UTF-8", TMPDIR: temporary },
    stdio: ["ignore", "pipe", "pipe"],
    ...(options.privileged ? {} : NOBODY),
  });
  const text = { stdout: "", stderr: "" };
  child.stderr.on("data", (bytes: Buffer) => {
    text.stderr += bytes.toString();
  });
  let stopped = false;
  child.stdout.on("data", (bytes: Buffer) => {
    text.stdout += bytes.toString();
    if (stopped || options.stopAt === undefined || !text.stdout.includes(options.stopAt)) return;
    stopped = true;
    child.kill("SIGINT");
  });
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code) => resolve({ code, ...text }));
  });
}

function assertNothingLeft(): void {
  assert.deepEqual(readdirSync(temporary), []);
  assert.ok(!readFileSync("/proc/self/mountinfo", "utf8").includes(work), "a mount was left");
}

interface Step {
  readonly step: string;
  readonly through?: string;
  readonly different?: number;
  readonly entries?: number;
  readonly ran?: boolean;
  readonly layers?: readonly { readonly state: string }[];
  readonly received?: number;
}

function stepsOf(stdout: string): { readonly good: boolean; readonly steps: readonly Step[] } {
  return JSON.parse(stdout) as { good: boolean; steps: Step[] };
}

describe("shale demo", () => {
  before(async () => {
    chmodSync(work, 0o755);
    mkdirSync(temporary);
    chmodSync(temporary, 0o1777);
    await writeLayout(layout);
  });
  after(() => rmSync(work, { recursive: true, force: true }));

  test("without root: compares each version with this host, and leaves nothing", async () => {
    const { code, stdout, stderr } = await demo(["--json"]);
    assert.equal(code, 0, stderr);
    const { good, steps } = stepsOf(stdout);
    assert.ok(good);
    const expected = ["build", "serve", "pull", "no mount", "compare", "pull", "diff", "compare"];
    assert.deepEqual(
      steps.map(({ step }) => step),
      expected,
    );
    for (const { different, entries, through } of steps.filter(({ step }) => step === "compare")) {
      assert.equal(different, 0);
      assert.equal(through, "reader");
      assert.ok(entries! > 1000, `only ${entries} entries`);
    }
    const [first, second] = steps.filter(({ step }) => step === "pull");
    assert.ok(first!.layers!.every(({ state }) => state === "fetched"));
    assert.equal(second!.layers!.filter(({ state }) => state === "present").length, 2);
    assert.ok(second!.received! < first!.received!);
    assertNothingLeft();
  });

  test("REF without root: verifies its files; the store of --root stays", async () => {
    const root = join(temporary, "store");
    const { code, stdout, stderr } = await demo(["--root", root, `oci:${layout}:v1`]);
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^– Mounting needs root: skipped, compared through shale's own reader$/m);
    assert.match(stdout, /^✓ Compared \d+ entries of .*: all as they should be/m);
    assert.ok(existsSync(root));
    rmSync(root, { recursive: true });
    assertNothingLeft();
  });

  test("as root: mounts, runs a program and compares through the mount; leaves nothing", AS_ROOT, async () => {
    const { code, stdout, stderr } = await demo([], { privileged: true });
    assert.equal(code, 0, stderr);
    assert.match(stdout, /^✓ Ran \/app\/hello in it.*\n {4}Hello from version 1/m);
    assert.match(stdout, /^✓ Compared [\d,]+ entries .* through the mount: all as they should be/m);
    assertNothingLeft();
  });

  test("REF as root: says so when no program of it can be run", AS_ROOT, async () => {
    const { code, stdout, stderr } = await demo(["--json", `oci:${layout}:v1`], { privileged: true });
    assert.equal(code, 0, stderr);
    const { steps } = stepsOf(stdout);
    assert.deepEqual(
      steps.map(({ step }) => step),
      ["pull", "mount", "run", "compare"],
    );
    assert.equal(steps[2]!.ran, false);
    assert.equal(steps[3]!.through, "mount");
    assertNothingLeft();
  });

  test("stopped by SIGINT: ends with 130 and leaves nothing", async () => {
    const stopAt = ROOT ? "Mounted it" : "Pulled";
    const { code } = await demo([], { privileged: true, stopAt });
    assert.equal(code, 130);
    assertNothingLeft();
  });
});
