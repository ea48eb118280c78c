/**
 * For random trees and random stores, a pull in parts and a whole pull give the same layer index, tree and tar, and that tree is
 * the one that the layer was made of. An eStargz layer gets its tar when it is completed, and keeps its tree.
 */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { FileType } from "../../formats/layer-index/index.ts";
import { type ScriptedServer, startScriptedServer } from "../../registry/testing/scripted-server.ts";
import { isTocIdentity, type Store } from "../../store/index.ts";
import {
  assertSound,
  assertTars,
  collect,
  contentOf,
  pull as pullLayout,
  withStore,
  writeImage,
} from "../../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { completeManifests } from "../complete.ts";
import { chunkedLayer, estargzLayer, layerIndexOf, publish, pullFrom, readTree, testClient } from "./testing/images.ts";
import { type Item, randomItem, randomLayer, type SourceFile, type SourceTree } from "./testing/random-trees.ts";

/**
 * The same runs each time, so that the gate does not depend on luck, and what it has to meet can be counted; SHALE_TEST_SEED=N
 * takes others, and SHALE_TEST_RUNS=N more. With a failure fast-check prints seed and path.
 */
const DEFAULTS = { seed: 1, runs: 12 };
const SEED = Number(process.env.SHALE_TEST_SEED ?? DEFAULTS.seed);
const RUNS = Number(process.env.SHALE_TEST_RUNS ?? DEFAULTS.runs);
/** Only the large files of random-trees.ts have a chunk of this size. */
const LARGE_CHUNK = 4_000_000;

/** The next image: what the last one has, or nothing, and more; and what happens before and after its pull. */
const step = fc.record({
  items: fc.array(randomItem, { minLength: 2, maxLength: 12, size: "max" }),
  keepsLast: fc.oneof({ weight: 3, arbitrary: fc.constant(true) }, { weight: 1, arbitrary: fc.constant(false) }),
  plain: fc.oneof({ weight: 1, arbitrary: fc.constant(true) }, { weight: 4, arbitrary: fc.constant(false) }),
  removesLast: fc.boolean(),
  completes: fc.boolean(),
});

/** What pulls in parts have to have met, in the default runs two times or more. */
const FEATURES =
  "file,empty file,large,large chunk copied,sparse,directory,symlink,hardlink,whiteout,opaque,fifo,character,block,long name,xattrs";
const FORMATS = [
  { format: "zstd:chunked", make: chunkedLayer, sparse: false },
  { format: "eStargz", make: estargzLayer, sparse: true },
] as const;
/** Entries that the eStargz writer adds. */
const ADDED = [".no.prefetch.landmark", "stargz.index.json"];

for (const { format, make, sparse } of FORMATS)
  test(
    `a pull in parts and a whole pull of ${format} give the same layer index, content and tar, and the tree that went in`,
    { timeout: 20_000 * RUNS },
    () =>
      withTemporaryDirectory(async (directory) => {
        await using server = await startScriptedServer();
        let runs = 0;
        let inParts = 0;
        const met = new Set<string>();
        await fc.assert(
          fc.asyncProperty(fc.array(step, { minLength: 2, maxLength: 4 }), async (steps) => {
            const scratch = join(directory, `run-${runs++}`);
            let items: readonly Item[] = [];
            await withStore(join(scratch, "store"), async (store) => {
              for (const [at, { items: more, keepsLast, plain, removesLast, completes }] of steps.entries()) {
                const name = `image-${at}`;
                items = [...(keepsLast ? items : []), ...more.map((one, i) => ({ ...one, number: at * 100 + i }))];
                const { tar, source, features } = randomLayer(items, { sparse: plain || sparse });
                if (removesLast && at > 0) {
                  store.removeImage(`image-${at - 1}`);
                  collect(store);
                }
                if (plain) {
                  writeImage(join(scratch, "layout"), name, [tar]);
                  await pullLayout(store, join(scratch, "layout"), name);
                  assert.deepEqual(treeOf(store, name), source);
                  continue;
                }
                const layer = await make(tar);
                publish(server, name, [layer]);
                const { layers } = await pullFrom(store, server, name);
                assert.deepEqual(treeOf(store, name), source);
                if (layers[0]!.parts === undefined) continue;
                inParts++;
                // a file that has only some of its chunks here
                if (layers[0]!.parts.copiedBytes > LARGE_CHUNK) met.add("large chunk copied");
                for (const feature of features) met.add(feature);
                const whole = await pulledAlone(server, join(scratch, `alone-${at}`), name);
                assert.deepEqual(layerIndexOf(store, name), whole.index);
                assert.deepEqual(contentOf(store, name), whole.content);
                assert.equal(isTocIdentity(diffIdOf(store, name)), format === "eStargz");
                if (completes) await complete(store, name);
                if (format === "eStargz" && !completes) continue;
                assert.equal(diffIdOf(store, name), layer.diffId);
                assertTars(store, name);
                assert.deepEqual(layerIndexOf(store, name), whole.index);
                assert.deepEqual(contentOf(store, name), whole.content);
              }
              await assertSound(store);
              for (const { name } of store.listImages()) {
                const before = layerIndexOf(store, name);
                await complete(store, name);
                assertTars(store, name);
                assert.deepEqual(layerIndexOf(store, name), before);
              }
              collect(store);
              await assertSound(store);
            });
          }),
          { numRuns: RUNS, seed: SEED },
        );
        const missed = FEATURES.split(",").filter((one) => !met.has(one) && (sparse || one !== "sparse"));
        if (SEED === DEFAULTS.seed && RUNS >= DEFAULTS.runs)
          assert.deepEqual(missed, [], `not met in parts with seed ${SEED}`);
        assert.ok(inParts >= runs / 2, `${inParts} pulls of ${runs} runs were in parts with seed ${SEED}`);
      }),
  );

const diffIdOf = (store: Store, name: string) => store.manifestsOf(name)[0]!.layers[0]!.diffId;

async function pulledAlone(server: ScriptedServer, root: string, name: string) {
  return await withStore(root, async (store) => {
    const { layers } = await pullFrom(store, server, name);
    assert.equal(layers[0]!.parts, undefined);
    return { index: layerIndexOf(store, name), content: contentOf(store, name) };
  });
}

/** Has the tars of an image in the store. */
async function complete(store: Store, name: string): Promise<void> {
  await using client = testClient();
  using operation = store.begin(`complete ${name}`);
  await completeManifests(store, operation, name, store.manifestsOf(name), {
    registry: async () => client,
    onDifference: (difference) => assert.fail(JSON.stringify(difference)),
  });
}

/** The tree that the store has of an image's layer, in the words of what it was made of. */
function treeOf(store: Store, name: string): SourceTree {
  using operation = store.begin(`read ${name}`);
  const names = new Map<number, string[]>();
  const entries = readTree(operation, diffIdOf(store, name), (entry) => {
    const { path, inode } = entry;
    names.set(inode.nid, [...(names.get(inode.nid) ?? []), path]);
    return entry;
  });
  const tree: Record<string, SourceFile | "whiteout"> = {};
  for (const { path, inode, xattrs, target, content } of entries) {
    if (ADDED.includes(path)) continue;
    const type = inode.mode & FileType.MASK;
    const device = `${inode.rdevMajor}:${inode.rdevMinor}`;
    if (type === FileType.CHARACTER && device === "0:0") {
      tree[path] = "whiteout";
      continue;
    }
    const all = names.get(inode.nid)!.toSorted();
    if (type !== FileType.DIRECTORY) assert.equal(inode.links, all.length, path);
    tree[path] = {
      mode: inode.mode.toString(8),
      owner: `${inode.uid}:${inode.gid}`,
      time: `${inode.mtimeSeconds} ${inode.mtimeNanoseconds}`,
      device,
      xattrs: xattrs
        // overlayfs's mark of a directory that holds whiteouts
        .filter((xattr) => xattr.name !== "trusted.overlay.origin")
        .map((xattr) => `${xattr.name}=${Buffer.from(xattr.value, "latin1").toString("hex")}`)
        .sort(),
      ...(type === FileType.DIRECTORY ? {} : { size: inode.size, names: all }),
      ...(content === undefined ? {} : { content }),
      ...(target === undefined ? {} : { target }),
    };
  }
  return tree;
}
