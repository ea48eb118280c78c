/** Random calls, against the contract written down as a small model in memory. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { type ErrorCode, ShaleError } from "../errors/index.ts";
import type { DiffId } from "../oci/index.ts";
import { type Bench, withBench } from "./testing/fixtures.ts";
import type { Labels, SnapshotKind, SnapshotMount } from "./types.ts";

interface Modelled {
  readonly kind: SnapshotKind;
  readonly parent: string;
  readonly labels: Labels;
  readonly mounts: readonly SnapshotMount[];
  readonly layer: boolean;
}

type Model = Map<string, Modelled>;

type Call =
  | { readonly call: "prepare" | "view"; readonly key: string; readonly parent: string; readonly labels: Labels }
  | {
      readonly call: "commit";
      readonly key: string;
      readonly name: string;
      readonly parent: string;
      readonly labels: Labels;
    }
  | { readonly call: "remove" | "mounts" | "stat" | "attach"; readonly key: string }
  | { readonly call: "update"; readonly key: string; readonly labels: Labels; readonly paths: readonly string[] }
  | { readonly call: "list"; readonly filter: string }
  | { readonly call: "cleanup" | "restart" };

const name = fc.constantFrom("a", "b", "c", "extract-d", "extract-e", "f");
const parent = fc.oneof({ weight: 2, arbitrary: fc.constant("") }, { weight: 3, arbitrary: name });
const labels: fc.Arbitrary<Labels> = fc.dictionary(fc.constantFrom("x", "y.z"), fc.constantFrom("1", "2", ""), {
  maxKeys: 2,
  noNullPrototype: true,
});
const call: fc.Arbitrary<Call> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({ call: fc.constantFrom("prepare" as const, "view" as const), key: name, parent, labels }),
  },
  { weight: 6, arbitrary: fc.record({ call: fc.constant("commit" as const), key: name, name, parent, labels }) },
  {
    weight: 8,
    arbitrary: fc.record({
      call: fc.constantFrom("remove" as const, "mounts" as const, "stat" as const, "attach" as const),
      key: name,
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      call: fc.constant("update" as const),
      key: name,
      labels,
      paths: fc.array(fc.constantFrom("labels", "labels.x", "labels.y.z", "kind"), { maxLength: 2 }),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      call: fc.constant("list" as const),
      filter: fc.constantFrom("", "kind==active", "parent==a", 'labels."y.z"==1', "labels.x", "name~=extract"),
    }),
  },
  { weight: 1, arbitrary: fc.record({ call: fc.constantFrom("cleanup" as const, "restart" as const) }) },
);

/** What the contract answers: a code, or undefined for success; and the model after it. */
function expected(model: Model, given: Call): ErrorCode | undefined {
  switch (given.call) {
    case "prepare":
    case "view": {
      if (model.has(given.key)) return "ALREADY_EXISTS";
      if (given.parent === "") return undefined;
      const below = model.get(given.parent);
      if (below === undefined) return "NOT_FOUND";
      return below.kind === "committed" ? undefined : "INVALID_ARGUMENT";
    }
    case "commit": {
      const active = model.get(given.key);
      if (active === undefined) return "NOT_FOUND";
      if (active.kind !== "active") return "FAILED_PRECONDITION";
      if (model.has(given.name)) return "ALREADY_EXISTS";
      if (given.parent === "" || given.parent === active.parent) return undefined;
      if (active.parent !== "") return "INVALID_ARGUMENT";
      const below = model.get(given.parent);
      if (below === undefined) return "NOT_FOUND";
      return below.kind === "committed" ? undefined : "FAILED_PRECONDITION";
    }
    case "remove":
      if (!model.has(given.key)) return "NOT_FOUND";
      return [...model.values()].some((one) => one.parent === given.key) ? "FAILED_PRECONDITION" : undefined;
    case "mounts":
      if (!model.has(given.key)) return "NOT_FOUND";
      return model.get(given.key)!.kind === "committed" ? "FAILED_PRECONDITION" : undefined;
    case "attach": {
      const active = model.get(given.key);
      if (active === undefined) return "NOT_FOUND";
      return active.kind === "active" && given.key.startsWith("extract-") ? undefined : "FAILED_PRECONDITION";
    }
    case "stat":
      return model.has(given.key) ? undefined : "NOT_FOUND";
    case "update":
      if (!model.has(given.key)) return "NOT_FOUND";
      return given.paths.includes("kind") ? "INVALID_ARGUMENT" : undefined;
    default:
      return undefined;
  }
}

function updated(before: Labels, wanted: Labels, paths: readonly string[]): Labels {
  let now = before;
  for (const path of paths.length === 0 ? ["labels"] : paths) {
    if (path === "labels") now = wanted;
    else {
      const key = path.slice("labels.".length);
      now = Object.fromEntries(
        Object.entries({ ...now, [key]: wanted[key] ?? "" }).filter(([k, v]) => k !== key || v !== ""),
      );
    }
  }
  return now;
}

function matches(filter: string, key: string, one: Modelled): boolean {
  if (filter === "kind==active") return one.kind === "active";
  if (filter === "parent==a") return one.parent === "a";
  if (filter.startsWith("labels.x")) return one.labels.x !== undefined;
  if (filter.startsWith("labels")) return one.labels["y.z"] === "1";
  return filter === "" || key.includes("extract");
}

async function perform(bench: Bench, model: Model, given: Call, layer: DiffId): Promise<void> {
  const { snapshotter } = bench;
  switch (given.call) {
    case "prepare":
    case "view": {
      const mounts = await snapshotter[given.call](given.key, given.parent, given.labels);
      const kind = given.call === "view" ? "view" : "active";
      model.set(given.key, { kind, parent: given.parent, labels: given.labels, mounts, layer: false });
      return;
    }
    case "commit": {
      await snapshotter.commit(given.name, given.key, given.labels, { parent: given.parent });
      const active = model.get(given.key)!;
      model.delete(given.key);
      const below = active.parent === "" ? given.parent : active.parent;
      model.set(given.name, { ...active, kind: "committed", parent: below, labels: given.labels, mounts: [] });
      return;
    }
    case "remove":
      await snapshotter.remove(given.key);
      model.delete(given.key);
      return;
    case "mounts":
      assert.deepEqual(await snapshotter.mounts(given.key), model.get(given.key)?.mounts);
      return;
    case "attach": {
      using operation = bench.store.begin("test");
      snapshotter.attachLayer(given.key, operation, layer);
      model.set(given.key, { ...model.get(given.key)!, layer: true });
      return;
    }
    case "stat": {
      const { name: found, kind, parent: below, labels: those } = snapshotter.stat(given.key);
      const { mounts: _mounts, layer: _layer, ...rest } = model.get(given.key)!;
      assert.deepEqual({ kind, parent: below, labels: those }, rest);
      assert.equal(found, given.key);
      return;
    }
    case "update": {
      const one = model.get(given.key);
      snapshotter.update({ name: given.key, labels: given.labels }, given.paths);
      model.set(given.key, { ...one!, labels: updated(one!.labels, given.labels, given.paths) });
      return;
    }
    case "list":
      assert.deepEqual(
        [...snapshotter.list([given.filter])].map((info) => info.name).sort(),
        [...model]
          .filter(([key, one]) => matches(given.filter, key, one))
          .map(([key]) => key)
          .sort(),
      );
      return;
    case "cleanup":
      await snapshotter.cleanup();
      return;
    case "restart":
      await bench.restart();
  }
}

/** After a cleanup: a directory for each that has one, and nothing else. */
async function assertNothingLeft(bench: Bench, model: Model): Promise<void> {
  await bench.snapshotter.cleanup();
  const needed = [...model.values()].filter(
    ({ kind, parent: below, layer }) => kind === "active" || (kind === "committed" ? !layer : below === ""),
  ).length;
  assert.equal(readdirSync(join(bench.root, "snapshots")).length, needed);
}

async function removeAll({ snapshotter }: Bench): Promise<void> {
  for (;;) {
    const all = [...snapshotter.list([])];
    if (all.length === 0) break;
    const parents = new Set(all.map((one) => one.parent));
    for (const one of all) if (!parents.has(one.name)) await snapshotter.remove(one.name);
  }
  await snapshotter.cleanup();
}

test("any sequence of calls answers as the contract says", () =>
  withBench(async (bench) => {
    const layer = await bench.layer({ file: "x" });
    await fc.assert(
      fc.asyncProperty(fc.array(call, { minLength: 10, maxLength: 60 }), async (calls) => {
        await removeAll(bench); // also what a failed run has left
        const model: Model = new Map();
        for (const given of calls) {
          const code = expected(model, given);
          try {
            await perform(bench, model, given, layer);
            assert.equal(undefined, code, `${JSON.stringify(given)} should have failed`);
          } catch (error) {
            if (!ShaleError.is(error)) throw error;
            assert.equal(error.code, code, `${JSON.stringify(given)}: ${error.message}`);
          }
        }
        await assertNothingLeft(bench, model);
      }),
      { numRuns: 300 },
    );
  }));
