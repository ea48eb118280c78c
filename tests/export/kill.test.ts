/**
 * SIGKILL at the crash points of exports, one by one: every name has what it had before or the complete new file; the next run ends
 * where an undisturbed one does; and nothing is left, beside the exports or in the store.
 *
 * SHALE_CRASH_FULL=1 tries every point; else the first and the last of each name.
 */
import assert from "node:assert/strict";
import { cpSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { mapConcurrent } from "../../src/async/index.ts";
import { collectAll } from "../../src/export/index.ts";
import { assertSound, pull, sha256, withStore } from "../../src/store/testing/fixtures.ts";
import { needsRoot, withTemporaryDirectory } from "../../src/sys/testing/filesystems.ts";
import { filesBelow, type Place, pointsOf, runDriver, TAG, writeImages } from "./kill.ts";

const FULL = process.env.SHALE_CRASH_FULL === "1";
/** Beside the driver this process works too. */
const AT_A_TIME = 2;
const OLD = "an older export";

interface Case {
  readonly what: "disk" | "cached" | "tarfs" | "composefs" | "ext4";
  /** Below the place's own directory. */
  readonly target: string;
  readonly atLeast: number;
}

function makePlace(scratch: string, name: string, { target }: Case): Place {
  const out = join(scratch, name, "out");
  mkdirSync(out, { recursive: true });
  const root = join(scratch, name, "store");
  cpSync(join(scratch, "pulled"), root, { recursive: true });
  return { root, out, target: join(out, target) };
}

function firstAndLast(points: readonly string[]): string[] {
  const nameOf = (point: string) => point.slice(0, point.indexOf("#"));
  const names = new Set(points.map(nameOf));
  const chosen = [...names].flatMap((name) => {
    const own = points.filter((point) => nameOf(point) === name);
    return [own[0]!, own.at(-1)!];
  });
  return [...new Set(chosen)];
}

/** Names that are there but hidden are no exports: nobody takes them for any. */
function visible(files: Readonly<Record<string, string>>): [string, string][] {
  return Object.entries(files).filter(
    ([path]) => !path.split("/").some((part) => part.startsWith(".") || part.endsWith(".tmp")),
  );
}

async function killEverywhere(scratch: string, one: Case): Promise<void> {
  writeImages(join(scratch, "layout"));
  await withStore(join(scratch, "pulled"), (store) => pull(store, join(scratch, "layout"), TAG));
  const undisturbed = makePlace(scratch, "undisturbed", one);
  const log = join(scratch, "points");
  const end = await runDriver(one.what, undisturbed, { SHALE_CRASH_RECORD: log });
  assert.equal(end.code, 0, end.stderr);
  const expected = filesBelow(undisturbed.out);
  const cached = filesBelow(join(undisturbed.root, "exports"));
  const own = [undisturbed.out, join(undisturbed.root, "exports")];
  const points = pointsOf(log, (path) => own.some((directory) => path.includes(directory)));
  assert.ok(points.length >= one.atLeast, `only ${points.length} points`);
  const chosen = FULL ? points : firstAndLast(points);
  let killed = 0;
  await mapConcurrent(chosen, AT_A_TIME, async (point) => {
    const place = makePlace(scratch, point.replace(/\W/g, "-"), one);
    const before = one.what === "disk";
    if (before) writeFileSync(place.target, OLD);
    const crashed = await runDriver(one.what, place, { SHALE_CRASH_AT: point });
    // Threads share the work, so that the order of points may differ between runs: the last of a name may not be met.
    if (crashed.signal === "SIGKILL") killed++;
    else assert.equal(crashed.code, 0, `${point}: ${crashed.stderr}`);
    for (const [path, digest] of visible(filesBelow(place.out))) {
      assert.ok(digest === expected[path] || (before && digest === sha256(Buffer.from(OLD))), `${point}: ${path}`);
    }
    const again = await runDriver(one.what, place);
    assert.equal(again.code, 0, `${point}: ${again.stderr}`);
    assert.deepEqual(filesBelow(place.out), expected, point);
    assert.deepEqual(filesBelow(join(place.root, "exports")), cached, point);
    await withStore(place.root, (store) => assertSound(store, point));
    for (const directory of ["staging", "leases"])
      assert.deepEqual(readdirSync(join(place.root, directory)), [], `${point}: ${directory}`);
  });
  assert.ok(killed >= chosen.length * 0.8, `${killed} of ${chosen.length} runs were killed`);
}

describe("SIGKILL of an export", () => {
  const CASES: readonly (Case & { readonly root?: true })[] = [
    { what: "disk", target: "disk", atLeast: 15 },
    { what: "cached", target: "disk", atLeast: 20 },
    { what: "tarfs", target: "tarfs", atLeast: 50 },
    { what: "composefs", target: "image", atLeast: 15 },
    { what: "ext4", target: "disk", atLeast: 10, root: true },
  ];
  for (const one of CASES) {
    test(
      `of ${one.what} leaves what was there or complete files, and nothing after the next run`,
      one.root ? needsRoot : {},
      () => withTemporaryDirectory((scratch) => killEverywhere(scratch, one)),
    );
  }

  test("into the cache leaves nothing that gc does not remove, also when the image is gone by then", () =>
    withTemporaryDirectory(async (scratch) => {
      const one: Case = { what: "cached", target: "disk", atLeast: 0 };
      writeImages(join(scratch, "layout"));
      await withStore(join(scratch, "pulled"), (store) => pull(store, join(scratch, "layout"), TAG));
      for (const [number, point] of ["export:written", "export:synced", "link#1", "rename#1", "rename#2"].entries()) {
        const place = makePlace(scratch, `${number}`, one);
        const { signal, stderr } = await runDriver(one.what, place, { SHALE_CRASH_AT: point });
        assert.equal(signal, "SIGKILL", `${point}: ${stderr}`);
        assert.equal(readdirSync(join(place.root, "exports")).length, 1, point);
        await withStore(place.root, async (store) => {
          if (number % 2 === 0) store.removeImage(TAG);
          const { items } = await collectAll(store);
          assert.ok(
            items.some(({ kind }) => kind === "export"),
            point,
          );
          assert.deepEqual(readdirSync(join(place.root, "exports")), [], point);
        });
      }
    }));
});
