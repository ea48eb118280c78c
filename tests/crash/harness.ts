/** Runs the driver and says what a store must look like afterwards. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { Store } from "../../src/store/index.ts";
import { assertSound, assertTars, contentOf } from "../../src/store/testing/fixtures.ts";
import { runSteps } from "./steps.ts";

const DRIVER = join(import.meta.dirname, "driver.ts");

export interface DriverEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
}

/** Resolves when the driver has ended, however. */
export function runDriver(args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<DriverEnd> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [DRIVER, ...args], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    let stderr = "";
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.on("error", reject);
    child.on("close", (code, signal) => resolve({ code, signal, stderr }));
  });
}

/** What a store holds, without ids and places, which differ from run to run. */
export interface FinalState {
  readonly images: readonly string[];
  readonly layers: readonly string[];
  readonly content: Readonly<Record<string, string>>;
}

export function stateOf(store: Store): FinalState {
  return {
    images: store.listImages().map((image) => image.name),
    layers: store
      .listLayers()
      .map((layer) => layer.diffId as string)
      .sort(),
    content: contentOf(store, "two"),
  };
}

/** Opens what a crash left, finds nothing wrong with it, does all steps (again), and ends where an undisturbed run does. */
export async function assertRecovers(root: string, layout: string, expected: FinalState, where: string): Promise<void> {
  await using store = Store.open(root, { create: true });
  assert.deepEqual(readdirSync(join(root, "staging")), [], `${where}: staging after opening`);
  await assertSound(store, `${where}: after opening`);
  await runSteps(store, layout);
  assert.deepEqual(stateOf(store), expected, where);
  await assertSound(store, `${where}: after all steps`);
  assertTars(store, "two");
  for (const directory of ["staging", "leases"]) {
    assert.deepEqual(readdirSync(join(root, directory)), [], `${where}: ${directory} at the end`);
  }
}
