import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { Database } from "./database.ts";
import { type ImageSummary, Store } from "./index.ts";
import { seedStore } from "./testing/seed.ts";

/** A store of rows: layers are [diffId, own, metadata, content], images lists of manifests. */
async function withRows(body: (database: Database, summarize: () => ImageSummary[]) => void): Promise<void> {
  const root = mkdtempSync(join(tmpdir(), "shale-summaries-"));
  try {
    await using store = Store.open(root, { create: true });
    using database = Database.open(join(root, "shale.db"));
    body(database, () => store.summarizeImages());
  } finally {
    rmSync(root, { recursive: true });
  }
}

function addManifest(database: Database, digest: string, platform: string, layers: readonly string[]): void {
  database.run("INSERT INTO manifests (digest, config, platform, chain_id) VALUES (?, 'c', ?, '')", digest, platform);
  for (const [position, diffId] of layers.entries()) {
    database.run(
      `INSERT INTO manifest_layers (manifest, position, diff_id, digest, media_type, size, content_bytes, stored_bytes)
         VALUES (?, ?, ?, 'd', 'm', 1, 10, 1)`,
      digest,
      position,
      diffId,
    );
  }
}

function addImage(database: Database, name: string, manifests: readonly string[]): void {
  database.run(
    "INSERT INTO images (name, digest, media_type, size, source, created_at, updated_at) VALUES (?, 'd', 'm', 1, 's', 1, 1)",
    name,
  );
  for (const manifest of manifests) {
    database.run("INSERT INTO image_manifests (image, manifest) VALUES (?, ?)", name, manifest);
  }
}

describe("Store.summarizeImages()", () => {
  const CASES: readonly {
    readonly name: string;
    readonly manifests: Readonly<Record<string, readonly string[]>>;
    readonly images: Readonly<Record<string, readonly string[]>>;
    /** Name, layers, content, stored, unique. */
    readonly sums: readonly (readonly [string, number, number, number, number])[];
  }[] = [
    {
      name: "layers of two images are unique to none",
      manifests: { m1: ["a", "b"], m2: ["a", "c", "d"] },
      images: { x: ["m1"], y: ["m2"] },
      sums: [
        ["x", 2, 20, 2, 1],
        ["y", 3, 30, 3, 2],
      ],
    },
    {
      name: "a manifest under two names is unique to none",
      manifests: { m1: ["a", "b"] },
      images: { x: ["m1"], y: ["m1"] },
      sums: [
        ["x", 2, 20, 2, 0],
        ["y", 2, 20, 2, 0],
      ],
    },
    {
      name: "platforms of one image share layers with each other only",
      manifests: { m1: ["a", "b"], m2: ["a", "c"] },
      images: { x: ["m1", "m2"] },
      sums: [["x", 3, 30, 3, 3]],
    },
    {
      name: "platforms of one image share a layer with another image",
      manifests: { m1: ["a", "b"], m2: ["a", "c"], m3: ["c"] },
      images: { x: ["m1", "m2"], y: ["m3"] },
      sums: [
        ["x", 3, 30, 3, 2],
        ["y", 1, 10, 1, 0],
      ],
    },
    { name: "an image without layers", manifests: { m1: [] }, images: { x: ["m1"] }, sums: [["x", 0, 0, 0, 0]] },
    { name: "no images", manifests: {}, images: {}, sums: [] },
  ];
  for (const { name, manifests, images, sums } of CASES) {
    test(name, async () => {
      await withRows((database, summarize) => {
        for (const [digest, layers] of Object.entries(manifests))
          addManifest(database, digest, `linux/${digest}`, layers);
        for (const [image, digests] of Object.entries(images)) addImage(database, image, digests);
        const found = summarize();
        assert.deepEqual(
          found.map((one) => [one.name, one.layers, one.contentBytes, one.storedBytes, one.uniqueBytes]),
          sums,
        );
        for (const one of found) {
          assert.deepEqual(
            one.platforms,
            images[one.name]!.map((digest) => `linux/${digest}`),
          );
        }
      });
    });
  }
});

describe("Store.imagesOfLayers()", () => {
  test("names every image of a layer once, sorted", async () => {
    const root = mkdtempSync(join(tmpdir(), "shale-summaries-"));
    try {
      const { images } = await seedStore(root, 300);
      await using store = Store.open(root);
      const users = store.imagesOfLayers();
      const summaries = store.summarizeImages();
      assert.equal(users.size, store.listLayers().length);
      assert.equal(summaries.length, images);
      const counted = [...users.values()].reduce((sum, names) => sum + names.length, 0);
      assert.equal(
        counted,
        summaries.reduce((sum, image) => sum + image.layers, 0),
      );
      for (const names of users.values()) assert.deepEqual(names, [...new Set(names)].sort());
    } finally {
      rmSync(root, { recursive: true });
    }
  });
});
