import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { gunzipSync } from "node:zlib";
import { type MadeUpImage, makeManyEntries, makeManyZeros } from "./made-up.ts";

/** The one layer's tar, after checking that every blob has the digest of its name. */
function layerTar(directory: string, image: MadeUpImage): Buffer {
  const blobs = join(directory, "blobs/sha256");
  for (const name of readdirSync(blobs)) {
    assert.equal(
      createHash("sha256")
        .update(readFileSync(join(blobs, name)))
        .digest("hex"),
      name,
    );
  }
  const index = JSON.parse(readFileSync(join(directory, "index.json"), "utf8"));
  const blob = (digest: string) => readFileSync(join(blobs, digest.slice("sha256:".length)));
  const manifest = JSON.parse(blob(index.manifests[0].digest).toString());
  const config = JSON.parse(blob(manifest.config.digest).toString());
  const layer = blob(manifest.layers[0].digest);
  assert.equal(layer.length, image.compressedSize);
  const tar = gunzipSync(layer); // checks CRC and length
  assert.equal(`sha256:${createHash("sha256").update(tar).digest("hex")}`, config.rootfs.diff_ids[0]);
  return tar;
}

describe("made-up images", () => {
  it("makeManyEntries() makes a layer that GNU tar lists with exactly that many entries", () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-made-up-"));
    try {
      const tar = layerTar(directory, makeManyEntries(directory, 2500));
      const names = execFileSync("tar", ["-tf", "-"], { input: tar }).toString().trimEnd().split("\n");
      assert.equal(new Set(names).size, 2500);
      assert.equal(names.filter((name) => name.endsWith("/")).length, 3);
      const content = execFileSync("tar", ["-xOf", "-", "d000002/file-2499"], { input: tar }).toString();
      assert.equal(content, "file 2499\n");
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("makeManyZeros() makes one file of that size in one gzip member whose repeated part is deflated once", () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-made-up-"));
    try {
      const size = 128 * 2 ** 20;
      const tar = layerTar(directory, makeManyZeros(directory, size));
      const listing = execFileSync("tar", ["-tvf", "-"], { input: tar }).toString();
      assert.match(listing, new RegExp(`^-rw-r--r-- 0/0 +${size} .* zeros\n$`));
      assert.ok(tar.subarray(512).every((byte) => byte === 0));
    } finally {
      rmSync(directory, { recursive: true });
    }
  });

  it("makeManyZeros() refuses a size that is no multiple of its unit", () => {
    const directory = mkdtempSync(join(tmpdir(), "shale-made-up-"));
    try {
      assert.throws(() => makeManyZeros(directory, 1000), RangeError);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});
