/** A store with many layers, written straight into its database: pulling as many would take minutes. */
import { join } from "node:path";
import { chainIdOf, type DiffId, type Digest, digestOf, MediaType } from "../../oci/index.ts";
import { Database } from "../database.ts";
import { Store } from "../index.ts";

/** Layers that only one image has. */
const OWN = 10;
/** Layers at the bottom of an image that every image of its family has too. */
const SHARED = 2;
const FAMILIES = 20;

/**
 * Makes a store at `root` with `layers` layers in images of twelve layers each, two of which are shared with others. Has
 * rows only: good for what reads the database alone.
 */
export async function seedStore(root: string, layers: number): Promise<{ readonly images: number }> {
  await Store.open(root, { create: true }).close();
  using database = Database.open(join(root, "shale.db"), {});
  let images = 0;
  database.transaction(() => {
    const bases = Array.from({ length: FAMILIES }, (_, family) =>
      Array.from({ length: SHARED }, (_, at) => addLayer(database, `base ${family} ${at}`)),
    );
    for (let made = FAMILIES * SHARED; made < layers; images++) {
      const own = Math.min(OWN, layers - made);
      const top = Array.from({ length: own }, (_, at) => addLayer(database, `layer ${images} ${at}`));
      made += own;
      addImage(database, images, [...bases[images % FAMILIES]!, ...top]);
    }
  });
  return { images };
}

function addLayer(database: Database, text: string): DiffId {
  const diffId = digestOf(Buffer.from(text)) as string as DiffId;
  database.run(
    `INSERT INTO layers (id, diff_id, tar_size, entries, content_bytes, own_bytes, shared_bytes, inline_bytes,
       metadata_bytes, image_sha256, recipe_sha256, notices, committed_at, indexed, standalone)
     VALUES (?, ?, 10240, 12, 9000, 8000, 900, 100, 500, ?, ?, '[]', 1, 1, 0)`,
    `1-${diffId.slice(7, 23)}-1`,
    diffId,
    diffId.slice(7),
    diffId.slice(7),
  );
  return diffId;
}

function addImage(database: Database, number: number, diffIds: readonly DiffId[]): void {
  const name = `registry.example/app-${number}:latest`;
  const manifest: Digest = digestOf(Buffer.from(name));
  const config: Digest = digestOf(Buffer.from(`config of ${name}`));
  database.run(
    "INSERT INTO manifests (digest, config, platform, chain_id) VALUES (?, ?, 'linux/amd64', ?)",
    manifest,
    config,
    chainIdOf(diffIds),
  );
  for (const [position, diffId] of diffIds.entries()) {
    database.run(
      `INSERT INTO manifest_layers (manifest, position, diff_id, digest, media_type, size, content_bytes, stored_bytes)
         VALUES (?, ?, ?, ?, ?, 4096, 9000, 8500)`,
      manifest,
      position,
      diffId,
      diffId,
      MediaType.OCI_LAYER,
    );
  }
  database.run(
    `INSERT INTO images (name, digest, media_type, size, source, created_at, updated_at)
     VALUES (?, ?, ?, 500, 'docker://registry.example', 1, 1)`,
    name,
    manifest,
    MediaType.OCI_MANIFEST,
  );
  database.run("INSERT INTO image_manifests (image, manifest) VALUES (?, ?)", name, manifest);
}
