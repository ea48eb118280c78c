/**
 * End to end with containerd 1.6 and 2.1, and runc: images come in each of the three ways, containers do real work on them
 * and see what they would see on overlayfs, and when all is removed nothing is left.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { before, test } from "node:test";
import { gunzipSync } from "node:zlib";
import { assertEmpty } from "./testing/empty.ts";
import { push, pushChain } from "./testing/images.ts";
import { type Generation, Machine, type Way, ensureTools, needsRoot } from "./testing/machine.ts";
import { differences, viewOf } from "./testing/view.ts";

before(ensureTools);

/** The way of each layer of the chain, lowest first. */
const CHAINS: readonly { readonly generation: Generation; readonly ways: readonly [Way, Way, Way] }[] = [
  { generation: "1.6", ways: ["plain", "plain", "plain"] },
  { generation: "2.1", ways: ["remote", "remote", "remote"] },
  { generation: "2.1", ways: ["differ", "differ", "differ"] },
  { generation: "2.1", ways: ["plain", "plain", "plain"] },
  { generation: "2.1", ways: ["remote", "differ", "plain"] },
  { generation: "2.1", ways: ["plain", "remote", "differ"] },
];

const WORK = `
set -e
echo written >/kinds/new
echo appended >>/kinds/small/7
[ "$(cat /kinds/small/7)" = "small 7
appended" ]
mv /kinds/dirs /kinds/renamed
[ -d /kinds/renamed/42 ] && [ ! -e /kinds/dirs ]
mv /kinds/moved/1 /elsewhere && [ "$(cat /elsewhere/file)" = "moved 1" ]
chown 1234:5678 /kinds/large/9 && [ "$(stat -c %u:%g /kinds/large/9)" = 1234:5678 ]
ln /kinds/small/8 /kinds/small/8-again && [ "$(stat -c %h /kinds/small/8)" = 2 ]
[ "$(getfattr --only-values -n user.note /kinds/xattr/5)" = "value 5" ]
setfattr -n user.note -v changed /kinds/xattr/5
[ "$(getfattr --only-values -n user.note /kinds/xattr/5)" = changed ]
rm -r /kinds/fifo && mkdir /kinds/fifo && [ -z "$(ls /kinds/fifo)" ]
[ "$(readlink /kinds/link/4)" = ../small/4 ]
md5sum /kinds/large/99 /kinds/replaced/2
`;

for (const { generation, ways } of CHAINS) {
  test(`containerd ${generation}: layers by ${[...new Set(ways)].join(", then ")}`, needsRoot, async () => {
    await using machine = await Machine.start({ generation, way: ways[0] });
    const chain = await pushChain(machine);
    for (const [at, image] of chain.entries()) {
      if (ways[at] !== ways[at - 1] && at > 0) {
        await machine.stopContainerd();
        await machine.startContainerd(ways[at]);
      }
      await machine.pull(image.name);
    }
    const [, app, changed] = chain;
    // What a container sees is what it would see on overlayfs, every file of it.
    await machine.pull(changed.name, "overlayfs");
    const own = await viewOf(machine, changed.name, "shale");
    assert.deepEqual(differences(own, await viewOf(machine, changed.name, "overlayfs")), []);
    assert.ok(own.size > 1800, `${own.size} files were compared`);

    assert.match(await machine.runContainer(app.name, "work", ["sh", "-c", WORK], { keep: true }), /large\/99/);
    // Each container has its own: a second one sees nothing of the first one's work.
    await machine.runContainer(app.name, "second", ["sh", "-ec", "[ ! -e /kinds/new ] && [ -d /kinds/dirs/42 ]"]);

    // What the first one did becomes an image's layer, and that image runs. (containerd's differ leaves user xattrs out.)
    const file = join(machine.directory, "committed.tar.gz");
    const diff = 'ctr -a "$0" -n "$1" snapshots --snapshotter shale diff work >"$2"';
    const { code, stderr } = await machine.inside([
      "sh",
      "-c",
      diff,
      machine.containerdSocket,
      machine.namespace,
      file,
    ]);
    assert.equal(code, 0, stderr);
    await machine.mustCtr("containers", "rm", "work");
    const layers = app.image.layers.map((layer) => layer.tar);
    const committed = await push(machine, "test/committed:v1", [...layers, gunzipSync(readFileSync(file))]);
    await machine.pull(committed.name);
    await machine.runContainer(committed.name, "again", [
      "sh",
      "-ec",
      `[ "$(cat /kinds/new)" = written ] && [ -d /kinds/renamed/42 ] && [ ! -e /kinds/dirs ] && [ -f /elsewhere/file ]
       [ "$(stat -c %u:%g /kinds/large/9)" = 1234:5678 ] && [ -z "$(ls /kinds/fifo)" ]`,
    ]);

    await machine.removeEverything();
    await machine.stopDaemon();
    assertEmpty(machine);
  });
}
