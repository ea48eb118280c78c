import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { DiffId } from "../oci/index.ts";
import type { SnapshotRecord } from "../store/index.ts";
import { imageLayers, planBases } from "./bases.ts";

/** "l": a layer, "p": a directory, "b": both, "e": neither, "c": a layer that was a directory. */
function chain(kinds: string): SnapshotRecord[] {
  return [...kinds].map((kind, at) => ({
    id: at + 1,
    name: `${at}`,
    kind: "committed",
    parentId: at === 0 ? undefined : at,
    parent: at === 0 ? "" : `${at - 1}`,
    labels: {},
    createdAt: 0n,
    updatedAt: 0n,
    diffId: "lbc".includes(kind) ? (`d${at}` as DiffId) : undefined,
    exact: kind !== "c",
    directory: "pb".includes(kind),
    bases: [],
    options: [],
    usage: undefined,
    unsyncedSince: undefined,
  }));
}

const shown = (...given: Parameters<typeof planBases>) =>
  planBases(...given)
    .map((base) =>
      base.kind === "chain" ? `[${base.diffIds.join(" ")}]` : base.kind === "layer" ? base.diffId : `s${base.id}`,
    )
    .join(" ");

describe("planBases()", () => {
  const CASES: readonly (readonly [kinds: string, merged: string, stacked: string, bare: string])[] = [
    ["", "", "", ""],
    ["l", "[d0]", "d0", "[d0]"],
    ["p", "s1", "s1", "s1"],
    ["lll", "[d0 d1 d2]", "d2 d1 d0", "d2 d1 d0"],
    ["llpl", "d3 s3 [d0 d1]", "d3 s3 d1 d0", "d3 s3 d1 d0"],
    ["plb", "s3 d2 d1 s1", "s3 d2 d1 s1", "s3 d2 d1 s1"],
    ["bl", "d1 s1 [d0]", "d1 s1 d0", "d1 s1 d0"],
    ["lel", "[d0 d2]", "d2 d0", "d2 d0"],
  ];
  for (const [kinds, merged, stacked, bare] of CASES) {
    test(`of "${kinds}"`, () => {
      assert.equal(shown(chain(kinds), "merged"), merged);
      assert.equal(shown(chain(kinds), "stacked"), stacked);
      assert.equal(shown(chain(kinds), "stacked", { bare: true }), bare);
    });
  }

  test("merges what does not fit into mount options", () => {
    assert.equal(planBases(chain("l".repeat(128)), "stacked").length, 128);
    assert.equal(planBases(chain("l".repeat(1000)), "stacked").length, 1);
  });
});

test("imageLayers() are known where all of a chain are an image's own", () => {
  assert.deepEqual(imageLayers(chain("ll")), ["d0", "d1"]);
  assert.deepEqual(imageLayers([]), []);
  for (const kinds of ["lp", "lc", "lb", "le"]) assert.equal(imageLayers(chain(kinds)), undefined);
});
