/**
 * SIGKILL at the crash points of a checkout, one by one: the target is absent, as it was, or complete; the next checkout ends where
 * an undisturbed one does, and nothing is left beside it or in the store.
 */
import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { mapConcurrent } from "../../src/async/index.ts";
import type { CheckoutOptions } from "../../src/checkout/index.ts";
import { assertSound, noise, pull, tar, withStore, writeImage } from "../../src/store/testing/fixtures.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { type DriverEnd, runDriver } from "./harness.ts";
import { type Description, describeTree } from "./image.ts";

/** Beside the driver this process works too. */
const AT_A_TIME = 2;
/** Points that are not the checkout's own: opening the store and its leases have tests of their own. */
const AFTER = "mkdir\t";

function writeImages(layout: string): void {
  writeImage(layout, "old", [tar({ "etc/": "", "etc/old": "old", gone: noise(9000, "gone") })]);
  writeImage(layout, "new", [
    tar({
      "etc/": "",
      "etc/new": "new",
      "etc/same": { type: "hardlink", linkTarget: "etc/new" },
      "usr/lib/large": noise(70_000, "large"),
      "usr/lib/name": { type: "symlink", linkTarget: "large" },
      "usr/fifo": { type: "fifo" },
    }),
    tar({ "usr/more": noise(5000, "more"), "var/": "" }),
  ]);
}

interface Case {
  readonly options: Omit<CheckoutOptions, "signal" | "onProgress">;
  /** Points of which each is tried, by their number; of the others the first of each name. */
  readonly all: RegExp;
}

/** The places of one run: a store, and the parent of its target. */
interface Place {
  readonly root: string;
  readonly layout: string;
  readonly parent: string;
  readonly target: string;
}

function makePlace(scratch: string, name: string, store: string): Place {
  const parent = join(scratch, name, "parent");
  mkdirSync(parent, { recursive: true });
  const root = join(scratch, name, "store");
  cpSync(store, root, { recursive: true });
  return { root, layout: join(scratch, "layout"), parent, target: join(parent, "tree") };
}

function checkOut(
  place: Place,
  { options }: Case,
  tag: string,
  env: Readonly<Record<string, string>> = {},
): Promise<DriverEnd> {
  const { root, layout, target } = place;
  return runDriver({ root, layout, target, tag, options, env });
}

/** Own points of a run, as NAME#K where K counts from the start of the process. */
function pointsOf(log: string, all: RegExp): string[] {
  const seen = new Map<string, number>();
  const lines = readFileSync(log, "utf8").trimEnd().split("\n");
  const first = lines.findIndex((line) => line.startsWith(AFTER) && line.includes(".shale-"));
  const chosen = new Set<string>();
  const points: string[] = [];
  for (const [at, line] of lines.entries()) {
    const name = line.slice(0, line.indexOf("\t"));
    const count = (seen.get(name) ?? 0) + 1;
    seen.set(name, count);
    if (at < first || (chosen.has(name) && !all.test(line))) continue;
    chosen.add(name);
    points.push(`${name}#${count}`);
  }
  return points;
}

async function killEverywhere(
  scratch: string,
  one: Case,
  description: (target: string) => Description,
): Promise<number> {
  writeImages(join(scratch, "layout"));
  const store = join(scratch, "pulled");
  await withStore(store, async (open) => {
    for (const tag of ["old", "new"]) await pull(open, join(scratch, "layout"), tag);
  });
  const undisturbed = makePlace(scratch, "undisturbed", store);
  const before = await prepare(undisturbed);
  const log = join(scratch, "points");
  const end = await checkOut(undisturbed, one, "new", { SHALE_CRASH_RECORD: log });
  assert.equal(end.code, 0, end.stderr);
  const wanted = description(undisturbed.target);
  const points = pointsOf(log, one.all);
  let killed = 0;
  await mapConcurrent(points, AT_A_TIME, async (point) => {
    const place = makePlace(scratch, point.replace(/\W/g, "-"), store);
    await prepare(place);
    const crashed = await checkOut(place, one, "new", { SHALE_CRASH_AT: point });
    // The order of points differs between runs, since threads share the work: a late one may not be met.
    if (crashed.signal === "SIGKILL") killed++;
    else assert.equal(crashed.code, 0, `${point}: ${crashed.stderr}`);
    const left = existsSync(place.target) ? description(place.target) : undefined;
    assert.ok(
      [wanted, before].some((state) => equal(state, left)),
      `${point}: left ${JSON.stringify(left)}`,
    );
    const again = await checkOut(place, { ...one, options: { ...one.options, replace: true } }, "new");
    assert.equal(again.code, 0, `${point}: ${again.stderr}`);
    assert.deepEqual(description(place.target), wanted, point);
    assert.deepEqual(readdirSync(place.parent), ["tree"], `${point}: left beside the target`);
    await withStore(place.root, (open) => assertSound(open, point));
    for (const directory of ["staging", "leases"])
      assert.deepEqual(readdirSync(join(place.root, directory)), [], point);
  });
  assert.ok(killed > points.length * 0.8, `${killed} of ${points.length} runs were killed`);
  return points.length;

  async function prepare(place: Place): Promise<Description | undefined> {
    if (one.options.replace !== true) return undefined;
    const first = await checkOut(place, { ...one, options: { link: "copy" } }, "old");
    assert.equal(first.code, 0, first.stderr);
    return description(place.target);
  }
}

function equal(a: Description | undefined, b: Description | undefined): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}

describe("SIGKILL of a checkout", needsRoot, () => {
  test("by hard link that replaces another leaves the old tree or the new", async () => {
    await withTemporaryDirectory(async (scratch) => {
      const one: Case = {
        options: { link: "hardlink", replace: true },
        all: /^(rename|checkout:|links:|syncDirectory)/,
      };
      const count = await killEverywhere(scratch, one, (target) => describeTree(target, { links: false }));
      assert.ok(count > 15, `only ${count} points`);
    });
  });

  test("by reflink on XFS leaves nothing or all, and no clones by halves", async () => {
    await withLoopFilesystem("xfs", {}, async (scratch) => {
      const one: Case = { options: { link: "reflink" }, all: /^(rename|checkout:|clones:|datasync)/ };
      const count = await killEverywhere(scratch, one, (target) => describeTree(target));
      assert.ok(count > 12, `only ${count} points`);
    });
  });
});
