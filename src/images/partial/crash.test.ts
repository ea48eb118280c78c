/** SIGKILL at each kind of crash point of a pull in parts: the store opens, is sound, and the pull goes on to the same end. */
import assert from "node:assert/strict";
import { cpSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { mapConcurrent } from "../../async/index.ts";
import { startScriptedServer } from "../../registry/testing/scripted-server.ts";
import { assertSound, assertTars, type Files, noise, tar, withStore } from "../../store/testing/fixtures.ts";
import { storeProcess } from "../../store/testing/processes.ts";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import type { Store } from "../../store/index.ts";
import { chunkedLayer, estargzLayer, layerIndexOf, publish, pullFrom } from "./testing/images.ts";

const large = noise(600_000, "large");
/** Most of both, so that parts are worth it also where a file is one chunk. */
const shared = { shared: noise(900_000, "shared") };
const FIRST: Files = { "./": "", ...shared, large, whole: noise(150_000, "whole"), small: noise(900, "small") };
const SECOND: Files = {
  "./": "",
  ...shared,
  changed: Buffer.concat([large.subarray(0, 200_000), noise(4000, "new"), large.subarray(200_000)]),
  whole: noise(150_000, "whole"),
  small: noise(900, "small"),
  fresh: noise(60_000, "fresh"),
};
/** Beside the child this process works too. */
const AT_A_TIME = 2;

const PULL = `
  const { pullFrom } = await import(args.images);
  const store = Store.open(args.root);
  await pullFrom(store, { host: args.host }, "second");
  await store.close();
`;

/** An eStargz layer has no tar, until it is completed. Its effects are those of the other; what it commits is not. */
const FORMATS = [
  { name: "zstd:chunked", make: chunkedLayer, effects: true, verify: (store: Store) => assertTars(store, "second") },
  { name: "eStargz", make: estargzLayer, effects: false, verify: () => undefined },
] as const;

for (const { name: format, make, effects, verify } of FORMATS)
  test(`a SIGKILL at each kind of crash point of a pull in parts (${format})`, () =>
    withTemporaryDirectory(async (directory) => {
      await using server = await startScriptedServer();
      const [first, second] = await Promise.all([make(tar(FIRST)), make(tar(SECOND))]);
      publish(server, "first", [first]);
      publish(server, "second", [second]);
      const prepared = join(directory, "prepared");
      await withStore(prepared, (store) => pullFrom(store, server, "first"));
      const expected = await withStore(join(directory, "alone"), async (store) => {
        await pullFrom(store, server, "second"); // whole: there is nothing else
        return layerIndexOf(store, "second");
      });

      const killedAt = async (root: string, env: Readonly<Record<string, string>>) => {
        cpSync(prepared, root, { recursive: true });
        const images = new URL("./testing/images.ts", import.meta.url).href;
        await using child = storeProcess(PULL, { root, host: server.host, images }, env);
        await child.ended;
      };
      const log = join(directory, "points");
      await killedAt(join(directory, "recorded"), { SHALE_CRASH_RECORD: log });
      const seen = new Map<string, number>();
      for (const line of readFileSync(log, "utf8").trimEnd().split("\n")) {
        const name = line.slice(0, line.indexOf("\t"));
        seen.set(name, (seen.get(name) ?? 0) + 1);
      }
      assert.ok(seen.has("assemble:written") && seen.has("chunks:batch"), [...seen.keys()].join(" "));
      // Of the store's own points the last; of plain effects, which are many, one in the middle.
      const wanted = [...seen].filter(([name]) => effects || name.includes(":"));
      const points = wanted.map(([name, count]) => `${name}#${name.includes(":") ? count : Math.ceil(count / 2)}`);
      await mapConcurrent(points, AT_A_TIME, async (point, number) => {
        const root = join(directory, `killed-${number}`);
        await killedAt(root, { SHALE_CRASH_AT: point });
        await withStore(root, async (store) => {
          assert.deepEqual(readdirSync(join(root, "staging")), [], point);
          await assertSound(store, point);
          await pullFrom(store, server, "second");
          assert.deepEqual(layerIndexOf(store, "second"), expected, point);
          verify(store);
          await assertSound(store, point);
        });
        rmSync(root, { recursive: true });
      });
    }));
