/** Completing a layer whose table of contents and tar tell of different trees: the tar counts, and the first difference is told. */
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { startScriptedServer } from "../registry/testing/scripted-server.ts";
import { isTocIdentity, type Store } from "../store/index.ts";
import { assertTars, type Files, noise, tar, withStore } from "../store/testing/fixtures.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { completeManifests, formatTocDifference, type TocDifference } from "./complete.ts";
import {
  type ChunkedLayer,
  estargzLayer,
  layerIndexOf,
  publish,
  pullFrom,
  testClient,
  type TocJson,
  withToc,
} from "./partial/testing/images.ts";

const COMMON: Files = { "./": "", "etc/": "", "etc/large": noise(400_000, "large") };
const FILES: Files = {
  ...COMMON,
  "etc/own": { content: noise(90_000, "own"), xattrs: [{ name: "user.note", value: "kept" }] },
  "etc/own-too": { type: "hardlink", linkTarget: "etc/own" },
  "etc/one": noise(20_000, "one"),
  "etc/other": noise(20_000, "other"),
  "etc/other-too": { type: "hardlink", linkTarget: "etc/other" },
  "etc/link": { type: "symlink", linkTarget: "one" },
  "etc/null": { type: "character", rdevMajor: 1, rdevMinor: 3 },
  "etc/time": { content: Buffer.from("time"), mtimeSeconds: 1_700_000_000, mtimeNanoseconds: 700_000_000 },
  // as bytes before "etc/time", in the tree after it
  "etc.d": "",
};

interface Completed {
  readonly told: readonly TocDifference[];
  /** What the image was before and after. */
  readonly shown: string[][];
  readonly complete: string[][];
}

type Complete = (layer: ChunkedLayer, before?: (store: Store, name: string) => void) => Promise<Completed>;

/** Has layers pulled in parts and completed, all in one store. */
async function withCompletion(use: (complete: Complete) => Promise<void>): Promise<void> {
  await withTemporaryDirectory(async (directory) => {
    await using server = await startScriptedServer();
    await using client = testClient();
    publish(server, "first", [await estargzLayer(tar(COMMON))]);
    await withStore(join(directory, "store"), async (store) => {
      await pullFrom(store, server, "first");
      let count = 0;
      await use(async (layer, before = () => undefined) => {
        const name = `image-${count++}`;
        publish(server, name, [layer]);
        await pullFrom(store, server, name);
        const [record] = store.manifestsOf(name);
        assert.ok(isTocIdentity(record!.layers[0]!.diffId), "it was pulled whole");
        const shown = layerIndexOf(store, name);
        before(store, name);
        const told: TocDifference[] = [];
        using operation = store.begin("complete");
        const [completed] = await completeManifests(store, operation, name, [record!], {
          registry: async () => client,
          onDifference: (difference) => told.push(difference),
        });
        assert.equal(completed!.layers[0]!.diffId, layer.diffId);
        assert.deepEqual(store.manifestsOf(name), [completed]);
        assertTars(store, name);
        for (const one of told) assert.deepEqual([one.image, one.diffId], [name, layer.diffId]);
        return { told, shown, complete: layerIndexOf(store, name) };
      });
    });
  });
}

const of = (entries: TocJson[], name: string) => entries.find((entry) => entry.name === name)!;

const CASES: Readonly<Record<string, { change: (entries: TocJson[]) => void; path: string; what: RegExp }>> = {
  mode: {
    change: (entries) => (of(entries, "etc/own").mode = 0o4755),
    path: "etc/own",
    what: /^has mode 104755 by its table of contents, 100644 by its tar$/,
  },
  owner: {
    change: (entries) => (of(entries, "etc/").gid = 7),
    path: "etc",
    what: /^has owner 0:7 by its table of contents, 0:0 by its tar$/,
  },
  time: {
    change: (entries) => (of(entries, "etc/one").modtime = "2001-01-01T00:00:00Z"),
    path: "etc/one",
    what: /^has time 978307200\.000000000 by its table of contents, /,
  },
  target: {
    change: (entries) => (of(entries, "etc/link").linkName = "other"),
    path: "etc/link",
    what: /^has target other by its table of contents, one by its tar$/,
  },
  device: {
    change: (entries) => (of(entries, "etc/null").devMinor = 5),
    path: "etc/null",
    what: /^has device 1:5 by its table of contents, 1:3 by its tar$/,
  },
  xattrs: {
    change: (entries) => (of(entries, "etc/own").xattrs = undefined),
    path: "etc/own",
    what: /^has other xattrs/,
  },
  content: {
    change(entries) {
      const [one, other] = [of(entries, "etc/one"), of(entries, "etc/other")];
      [one.name, other.name] = [other.name, one.name];
    },
    path: "etc/one",
    what: /^has other content/,
  },
  size: {
    change(entries) {
      const [one, own] = [of(entries, "etc/one"), of(entries, "etc/own")];
      for (const key of ["size", "digest", "offset", "chunkDigest", "chunkSize", "innerOffset"]) one[key] = own[key];
    },
    path: "etc/one",
    what: /^has size 90000 by its table of contents, 20000 by its tar$/,
  },
  "first name": {
    change(entries) {
      of(entries, "etc/own-too").linkName = "etc/other";
      of(entries, "etc/other-too").linkName = "etc/own";
    },
    path: "etc/other-too",
    what: /^has first name etc\/other-too by its table of contents, etc\/other by its tar$/,
  },
  "link count": {
    change(entries) {
      of(entries, "etc/own-too").linkName = "etc/one";
    },
    path: "etc/one",
    what: /^has link count 2 by its table of contents, 1 by its tar$/,
  },
  "an entry less": {
    change: (entries) => void entries.splice(entries.indexOf(of(entries, "etc/link")), 1),
    path: "etc/link",
    what: /^is in its tar, and not in its table of contents$/,
  },
  "an entry less at the end of a directory": {
    change: (entries) => void entries.splice(entries.indexOf(of(entries, "etc/time")), 1),
    path: "etc/time",
    what: /^is in its tar, and not in its table of contents$/,
  },
  "an entry more": {
    change: (entries) => void entries.push({ ...of(entries, "etc/link"), name: "etc/link.more" }),
    path: "etc/link.more",
    what: /^is in its table of contents, and not in its tar$/,
  },
  "an entry more at the end": {
    change: (entries) => void entries.push({ ...of(entries, "etc/link"), name: "zzz" }),
    path: "zzz",
    what: /^is in its table of contents, and not in its tar$/,
  },
};

test("completeManifests() tells of the first entry that a TOC has otherwise than the tar, and the tar counts", (t) =>
  withCompletion(async (complete) => {
    const honest = await estargzLayer(tar(FILES));
    for (const [name, { change, path, what }] of Object.entries(CASES)) {
      await t.test(name, async () => {
        const { told, shown, complete: after } = await complete(withToc(honest, change));
        assert.equal(told.length, 1);
        assert.equal(told[0]!.path, path);
        assert.match(told[0]!.what, what);
        assert.notDeepEqual(after, shown);
      });
    }
  }));

test("completeManifests() tells of nothing where TOC and tar agree, nor where the TOC has rounded times", () =>
  withCompletion(async (complete) => {
    const honest = await estargzLayer(tar(FILES));
    const same = await complete(honest);
    assert.deepEqual(same.told, []);
    assert.deepEqual(same.complete, same.shown);
    const withTime = (modtime: string) =>
      complete(
        withToc(honest, (entries) => {
          of(entries, "etc/time").modtime = modtime;
        }),
      );
    // the tar has 1.7e9 + 0.7 s
    for (const modtime of ["2023-11-14T22:13:20Z", "2023-11-14T22:13:21Z"]) {
      assert.deepEqual((await withTime(modtime)).told, [], modtime);
    }
    for (const modtime of ["2023-11-14T22:13:19Z", "2023-11-14T22:13:22Z", "2023-11-14T22:13:20.1Z"]) {
      assert.equal((await withTime(modtime)).told[0]?.path, "etc/time", modtime);
    }
  }));

test("completeManifests() replaces a layer that is damaged, and says that it could not be compared", () =>
  withCompletion(async (complete) => {
    const { told } = await complete(await estargzLayer(tar(FILES)), (store, name) => {
      const { id } = store.findLayer(store.manifestsOf(name)[0]!.layers[0]!.diffId)!;
      const path = join(store.root, "layers", id, "meta.erofs");
      writeFileSync(path, readFileSync(path).fill(0xff, 1024, 1152));
    });
    assert.equal(told.length, 1);
    assert.equal(told[0]!.path, undefined);
    assert.match(
      formatTocDifference(told[0]!),
      /^Layer sha256:[0-9a-f]{64} of image-0:latest can't be compared with what was/,
    );
  }));

test("formatTocDifference() names the layer, its image and the entry, in one line", () => {
  const text = formatTocDifference({
    image: "app:1",
    diffId: "sha256:00" as never,
    path: "etc/\n",
    what: "has mode 1",
  });
  assert.match(text, /^Layer sha256:00 of app:1 is not what its table of contents said: etc\/\\x0a has mode 1\. /);
});
