/** For random trees and random stores, a pull in parts and a whole pull give the same layer index, tree and tar. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import { type ScriptedServer, startScriptedServer } from "../../registry/testing/scripted-server.ts";
import {
  assertSound,
  assertTars,
  collect,
  contentOf,
  type Files,
  noise,
  pull as pullLayout,
  tar,
  withStore,
  writeImage,
} from "../../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { chunkedLayer, estargzLayer, layerIndexOf, publish, pullFrom } from "./testing/images.ts";

/** Contents come from few seeds, with changes in their middle, so that files, chunks and small files are shared. */
const content = fc.record({
  seed: fc.nat(5),
  size: fc.constantFrom(0, 1, 700, 2048, 2049, 4096, 30_000, 200_000, 600_000),
  cutAt: fc.option(fc.double({ min: 0, max: 1, noNaN: true })),
  zeros: fc.constantFrom(0, 0, 0, 900, 5000, 300_000),
});
const node = fc.oneof(
  { weight: 6, arbitrary: content.map((one) => ({ kind: "file" as const, ...one })) },
  { weight: 1, arbitrary: fc.constant({ kind: "directory" as const }) },
  { weight: 1, arbitrary: fc.nat(9).map((target) => ({ kind: "symlink" as const, target })) },
  { weight: 1, arbitrary: fc.constant({ kind: "hardlink" as const }) },
  { weight: 1, arbitrary: fc.constantFrom("whiteout" as const, "opaque" as const).map((kind) => ({ kind })) },
  { weight: 1, arbitrary: fc.constant({ kind: "device" as const }) },
);
const attributes = fc.record({
  mode: fc.constantFrom(0o644, 0o755, 0o4755, 0o600),
  uid: fc.constantFrom(0, 1000, 70_000),
  mtimeSeconds: fc.constantFrom(0, 1_700_000_000),
  mtimeNanoseconds: fc.constantFrom(0, 0, 123_456_789),
});
const tree = fc.array(fc.record({ node, attributes, directory: fc.nat(3) }), { maxLength: 25 });

type Tree = typeof tree extends fc.Arbitrary<infer T> ? T : never;

/** More than a pull in parts asks for, and in every image. */
const BALLAST: Files = { "./": "", ballast: noise(200_000, "ballast") };

function filesOf(list: Tree): Files {
  const files: Record<string, Files[string]> = { ...BALLAST };
  let lastFile: string | undefined;
  const opaque = new Set<number>();
  for (const [at, { node: one, attributes: given, directory }] of list.entries()) {
    const parent = `d${directory}`;
    files[`${parent}/`] ??= "";
    const path = `${parent}/n${at}`;
    switch (one.kind) {
      case "file": {
        const base = noise(one.size, one.seed);
        const cut = one.cutAt === null ? base.length : Math.floor(one.cutAt * base.length);
        const changed = one.cutAt === null ? Buffer.alloc(0) : noise(17, `change ${cut}`);
        const bytes = Buffer.concat([base.subarray(0, cut), changed, Buffer.alloc(one.zeros), base.subarray(cut)]);
        files[path] = given.uid === 0 ? bytes : { ...given, content: bytes };
        lastFile = path;
        break;
      }
      case "directory":
        files[`${path}/`] = "";
        break;
      case "symlink":
        files[path] = { type: "symlink", linkTarget: `../d${one.target}/x`, ...given };
        break;
      case "hardlink":
        if (lastFile !== undefined) files[path] = { type: "hardlink", linkTarget: lastFile };
        break;
      case "whiteout":
        files[`${parent}/.wh.gone${at}`] = "";
        break;
      case "opaque":
        if (!opaque.has(directory)) files[`${parent}/.wh..wh..opq`] = "";
        opaque.add(directory);
        break;
      case "device":
        files[path] = { type: "character", rdevMajor: 1, rdevMinor: 3, ...given };
        break;
    }
  }
  return files;
}

const step = fc.record({ tree, plain: fc.boolean(), removeFirst: fc.boolean() });

/** Whether parts are worth it may depend on the line, unless most is there: the second image has one small file more. */
const SURELY_IN_PARTS = [[], [smallFile()]].map((list) => ({ tree: list, plain: false, removeFirst: false }));

function smallFile(): Tree[number] {
  const attributes = { mode: 0o644, uid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0 } as const;
  return { node: { kind: "file", seed: 1, size: 700, cutAt: null, zeros: 0 }, attributes, directory: 0 };
}

/** An eStargz layer that came in parts has no tar: save and push complete it (tests/estargz.test.ts). */
const FORMATS = [
  { name: "zstd:chunked", make: chunkedLayer, verify: assertTars },
  { name: "eStargz", make: estargzLayer, verify: () => undefined },
] as const;

for (const { name: format, make, verify } of FORMATS)
  test(
    `a pull in parts and a whole pull of ${format} give the same layer index, content and, where one is kept, tar`,
    { timeout: 120_000 },
    () =>
      withTemporaryDirectory(async (directory) => {
        await using server = await startScriptedServer();
        let runs = 0;
        let inParts = 0;
        await fc.assert(
          fc.asyncProperty(fc.array(step, { minLength: 2, maxLength: 4 }), async (steps) => {
            const scratch = join(directory, `run-${runs++}`);
            await withStore(join(scratch, "store"), async (store) => {
              for (const [at, { tree: list, plain, removeFirst }] of steps.entries()) {
                const name = `image-${at}`;
                const bytes = tar(filesOf(list));
                if (removeFirst && at > 0) {
                  store.removeImage(`image-${at - 1}`);
                  collect(store);
                }
                if (plain) {
                  writeImage(join(scratch, "layout"), name, [bytes]);
                  await pullLayout(store, join(scratch, "layout"), name);
                  continue;
                }
                publish(server, name, [await make(bytes)]);
                const { layers } = await pullFrom(store, server, name);
                if (layers[0]!.parts !== undefined) inParts++;
                const whole = await pulledAlone(server, join(scratch, `alone-${at}`), name);
                assert.deepEqual(layerIndexOf(store, name), whole.index);
                assert.deepEqual(contentOf(store, name), whole.content);
                verify(store, name);
              }
              await assertSound(store);
            });
          }),
          { numRuns: 12, examples: [[SURELY_IN_PARTS]] },
        );
        assert.ok(inParts > 0, "no pull was in parts");
      }),
  );

async function pulledAlone(server: ScriptedServer, root: string, name: string) {
  return await withStore(root, async (store) => {
    const { layers } = await pullFrom(store, server, name);
    assert.equal(layers[0]!.parts, undefined);
    return { index: layerIndexOf(store, name), content: contentOf(store, name) };
  });
}
