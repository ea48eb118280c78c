/** The work during which the crash tests kill: every kind of change that a store goes through, on small images. */
import { join } from "node:path";
import type { Store } from "../../src/store/index.ts";
import { collect, contentOf, noise, pull, tar, writeImage } from "../../src/store/testing/fixtures.ts";
import { makeDirectory } from "../../src/sys/index.ts";

export type Step =
  | { readonly name: string; readonly kind: "pull" | "remove" | "read"; readonly image: string }
  | { readonly name: string; readonly kind: "collect" };

export const STEPS: readonly Step[] = [
  { name: "pull one", kind: "pull", image: "one" },
  { name: "pull two", kind: "pull", image: "two" },
  { name: "remove one", kind: "remove", image: "one" },
  { name: "collect", kind: "collect" },
  { name: "read two", kind: "read", image: "two" },
];

/** Images of which `two` shares a payload with a layer of `one` that goes, so that `collect` unlinks and punches. */
export function writeImages(directory: string): void {
  const shared = noise(20_000, "shared");
  writeImage(directory, "one", [
    tar({ "etc/": "", "etc/passwd": "root:x:0:0", lib: shared, dead: noise(70_000, "dead"), old: noise(9000, 1) }),
    tar({ "etc/.wh.passwd": "", dead: noise(30_000, "more"), small: "one" }),
  ]);
  writeImage(directory, "two", [
    tar({ "usr/": "", "usr/lib": shared, "usr/new": noise(15_000, "new") }),
    tar({ "usr/extra": noise(5000, "extra"), small: "two" }),
  ]);
}

/**
 * Runs all steps. Each leads to the same state whether it is run for the first time or again after a crash. With `marks`
 * a directory of that number is made there after each step: an effect, so that a log of effects says what was done.
 */
export async function runSteps(store: Store, layout: string, marks?: string): Promise<void> {
  for (const [number, step] of STEPS.entries()) {
    if (step.kind === "pull") await pull(store, layout, step.image);
    else if (step.kind === "remove") {
      if (store.findImage(step.image) !== undefined) store.removeImage(step.image);
    } else if (step.kind === "collect") collect(store);
    else contentOf(store, step.image);
    if (marks !== undefined) makeDirectory(join(marks, String(number)));
  }
}
