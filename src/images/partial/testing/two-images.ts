/** Two images that have much in common, on a scripted registry. For tests only. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { type ScriptedServer, startScriptedServer } from "../../../registry/testing/scripted-server.ts";
import type { Store } from "../../../store/index.ts";
import { assertSound, assertTars, type Files, noise, tar, withStore } from "../../../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../../../sys/testing/filesystems.ts";
import { type ChunkedLayer, chunkedLayer, layerIndexOf, publish, pullFrom } from "./images.ts";

/** Cut into some 30 chunks. */
export const large = noise(1_500_000, "large");
/** The same with a piece in the middle replaced, and another length. */
export const changed = Buffer.concat([large.subarray(0, 700_000), noise(5000, "new"), large.subarray(710_000)]);
export const small = Object.fromEntries(
  Array.from({ length: 60 }, (_, i) => [`etc/small-${i}`, noise(20 + i * 30, `small ${i}`)]),
);

export const FIRST: Files = {
  "./": "",
  "etc/": "",
  ...small,
  large,
  same: noise(300_000, "same"),
  twice: noise(90_000, "twice"),
  flat: Buffer.concat([Buffer.alloc(3_000_000, "b"), Buffer.alloc(5000), noise(400, "tail")]),
};
export const SECOND: Files = {
  "./": "",
  "etc/": "",
  ...small,
  "etc/only-here": "x".repeat(500),
  changed,
  moved: noise(300_000, "same"),
  again: noise(90_000, "twice"),
  sparse: Buffer.concat([noise(5000, "a"), Buffer.alloc(400_000), noise(5000, "b")]),
  empty: "",
  // one chunk of 3 MB that is here, and one that is not
  flat: Buffer.concat([Buffer.alloc(3_000_000, "b"), Buffer.alloc(6000), noise(400, "other tail")]),
  flatter: Buffer.alloc(2_500_000, "c"),
  fresh: noise(120_000, "fresh"),
  "fresh-again": noise(120_000, "fresh"),
};
/** Bytes of SECOND that FIRST does not have, generously: chunks about the change, two files, the ends of the sparse one. */
export const MISSING = 120_000 + 10_000 + 300_000;

/** Annotations that place the TOC so many bytes further on. */
export function shifted({ annotations }: ChunkedLayer, by: number): Record<string, string> {
  return Object.fromEntries(
    Object.entries(annotations).map(([key, value]) => [
      key,
      key.endsWith("-position") ? value.replace(/^\d+/, (offset) => `${Number(offset) + by}`) : value,
    ]),
  );
}

export interface Fixture {
  readonly root: string;
  readonly directory: string;
  readonly server: ScriptedServer;
  readonly first: ChunkedLayer;
  readonly second: ChunkedLayer;
}

export async function withServer(use: (fixture: Fixture) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    await using server = await startScriptedServer();
    const [first, second] = await Promise.all([chunkedLayer(tar(FIRST)), chunkedLayer(tar(SECOND))]);
    publish(server, "first", [first]);
    await use({ root: join(directory, "store"), directory, server, first, second });
  });
}

/** What a store says of "second" after a whole pull: the first thing that it pulls is pulled whole. */
export async function pulledWhole({ directory, server }: Fixture): Promise<string[][]> {
  return await withStore(join(directory, "whole"), async (store) => {
    const result = await pullFrom(store, server, "second");
    assert.equal(result.layers[0]!.parts, undefined);
    return layerIndexOf(store, "second");
  });
}

export async function assertSame(fixture: Fixture, store: Store): Promise<void> {
  const found = layerIndexOf(store, "second");
  publish(fixture.server, "second", [fixture.second]); // a server without faults
  assert.deepEqual(found, await pulledWhole(fixture));
  assertTars(store, "second");
  await assertSound(store);
}

export const noDownloads = (store: Store) => assert.deepEqual(readdirSync(join(store.root, "downloads")), []);
