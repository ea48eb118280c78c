/**
 * The newest podman and skopeo as judges of zstd:chunked, and as writers of it. Run by `npm run test:convert-lab`, which makes the
 * tree of peers first; as root.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { promisify } from "node:util";
import { zstdDecompressSync } from "node:zlib";
import { openOciLayout } from "../src/archives/index.ts";
import { locate, openToc, readVector, replay } from "../src/formats/toc/testing.ts";
import { convertImage } from "../src/images/convert.ts";
import { pullImage } from "../src/images/pull.ts";
import { type Descriptor, parseReference } from "../src/oci/index.ts";
import { type DockerRegistry, startDockerRegistry } from "../src/registry/testing/docker-registry.ts";
import { testClient } from "../src/registry/testing/fixtures.ts";
import {
  layoutOrigin,
  type MadeImage,
  noise,
  sha256,
  tar,
  withStore,
  writeImage,
} from "../src/store/testing/fixtures.ts";

const PEERS = join(import.meta.dirname, "peers/peers.sh");
const APP = "docker.io/library/app:1";
const run = promisify(execFile);

/** The layer of the vectors, which has everything that a TOC tells, and one that cuts a large file. */
const TARS = [
  zstdDecompressSync(readVector("skopeo.zstd-chunked").blob),
  tar({
    "usr/": "",
    "usr/large": Buffer.concat([noise(3_000_000, "large"), Buffer.alloc(500_000), noise(500_000, "end")]),
  }),
];

describe("podman and skopeo of today", { timeout: 600_000 }, () => {
  let share: string;
  let registry: DockerRegistry;
  let image: MadeImage;

  const inside = async (script: string): Promise<string> => {
    const env = { ...process.env, PEERS_SHARE: share };
    const { stdout, stderr } = await run(PEERS, ["run", "bash", "-ec", script], { env, maxBuffer: 1e8 });
    return stdout + stderr;
  };

  before(async () => {
    share = mkdtempSync(join(tmpdir() === "/tmp" ? "/var/tmp" : tmpdir(), "shale-lab-"));
    registry = await startDockerRegistry(join(share, "registry"));
    image = writeImage(join(share, "source"), "v1", TARS);
    const options = `pull_options = {enable_partial_images = "true"}`;
    writeFileSync(
      join(share, "storage.conf"),
      `[storage]\ndriver = "overlay"\ngraphroot = "/share/graph"\nrunroot = "/run/graph"\n[storage.options]\n${options}\n`,
    );
    mkdirSync(join(share, "out"));
  });
  after(async () => {
    await registry[Symbol.asyncDispose]();
    rmSync(share, { recursive: true });
  });

  test("podman pulls what shale pushed in parts, and takes it for the image that it was made of", async () => {
    const reference = parseReference(`${registry.host}/app:zc`);
    await using one = testClient();
    await withStore(join(share, "store"), async (store) => {
      await pullImage(store, await layoutOrigin(join(share, "source"), "v1"), { name: APP });
      const client = async () => one.client;
      await convertImage(store, "app:1", { to: "zstd:chunked", output: { kind: "registry", reference, client } });
    });
    const log = await inside(
      `export CONTAINERS_STORAGE_CONF=/share/storage.conf
       podman --log-level debug pull --tls-verify=false ${registry.host}/app:zc
       podman image inspect --format 'id={{.Id}}' ${registry.host}/app:zc
       m=$(podman image mount ${registry.host}/app:zc); cd "$m"; sha256sum usr/large data/mixed | sed s/^/sum=/
       podman image umount -a >/dev/null; podman rmi -a >/dev/null`,
    );
    assert.equal(log.match(/Retrieved partial blob/g)?.length, 2, log.slice(-4000));
    assert.match(log, new RegExp(`id=${image.config.digest.slice(7)}`));
    const large = TARS[1]!.subarray(1024, 1024 + 4_000_000);
    assert.match(log, new RegExp(`sum=${sha256(large)}`));
  });

  test("skopeo cuts and tells every layer as shale does", async () => {
    await inside("skopeo copy --dest-compress-format zstd:chunked oci:/share/source:v1 oci:/share/theirs:v1");
    await withStore(join(share, "store"), async (store) => {
      const output = { kind: "layout", directory: join(share, "ours"), tag: "v1" } as const;
      await convertImage(store, "app:1", { to: "zstd:chunked", output });
    });
    const ours = layersOf(join(share, "ours"));
    const theirs = layersOf(join(share, "theirs"));
    assert.equal(ours.length, TARS.length);
    for (const [position, mine] of ours.entries()) assert.deepEqual(documents(mine), documents(theirs[position]!));
    for (const [position, { blob, annotations }] of theirs.entries()) {
      const { tar: again } = await replay(await openToc(blob, annotations), blob);
      assert.ok(again.equals(TARS[position]!));
    }
  });
});

interface Layer {
  readonly blob: Buffer;
  readonly annotations: Descriptor["annotations"];
}

function layersOf(directory: string): Layer[] {
  const { manifest } = openOciLayout(directory).readManifest(openOciLayout(directory).get("v1"));
  assert.ok(manifest.kind === "manifest");
  return manifest.layers.map(({ digest, annotations }) => {
    return { blob: readFileSync(join(directory, "blobs/sha256", digest.slice(7))), annotations };
  });
}

/** TOC without the places of frames, and tar-split. */
function documents({ blob, annotations }: Layer): unknown {
  const location = locate(blob, annotations);
  assert.ok(location.format === "zstd:chunked");
  const text = ({ offset, length }: { readonly offset: number; readonly length: number }) =>
    zstdDecompressSync(blob.subarray(offset, offset + length)).toString("utf8");
  const placeless = (key: string, value: unknown) => (/^(offset|endOffset|tarSplitDigest)$/.test(key) ? 0 : value);
  return [JSON.parse(text(location.toc), placeless), text(location.tarSplit)];
}
