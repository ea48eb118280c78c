/**
 * Images: names, the documents they lead to, and the layers those need. An image is recorded in one transaction, and only
 * when all its layers are there (G4); removing one is one transaction too, whatever its size.
 */
import { ShaleError } from "../errors/index.ts";
import {
  type ChainId,
  chainIdOf,
  type DiffId,
  type Digest,
  decodeImageConfig,
  type ImageConfig,
} from "../oci/index.ts";
import { crashPoint } from "../sys/index.ts";
import type { StoreContext } from "./context.ts";
import type { Row } from "./database.ts";
import { claimLayer } from "./layers.ts";
import { isTocIdentity, SQL_IS_TOC_IDENTITY } from "./toc-identity.ts";

/** A manifest, index or config as it was received; the caller has verified the digest. */
export interface Document {
  readonly digest: Digest;
  readonly mediaType: string;
  readonly bytes: Uint8Array;
}

export interface ManifestLayer {
  /** What the layer is kept under: the diffId of the config, or its identity where it is verified by its TOC. */
  readonly diffId: DiffId;
  /** Digest, media type and size of the blob as the manifest names it. */
  readonly digest: Digest;
  readonly mediaType: string;
  readonly size: number;
}

export interface ManifestRecord {
  readonly digest: Digest;
  readonly config: Digest;
  /** "linux/amd64" and the like. */
  readonly platform: string;
  /** Of `layers` as they are kept; undefined for an image without layers. */
  readonly chainId: ChainId | undefined;
  /** Lowest first. */
  readonly layers: readonly ManifestLayer[];
}

export interface ImageRecord {
  readonly name: string;
  /** What the name resolved to: a manifest or an index. */
  readonly digest: Digest;
  readonly mediaType: string;
  readonly size: number;
  readonly source: string;
  readonly pinned: boolean;
  readonly createdAt: Date;
  readonly updatedAt: Date;
}

export interface NewImage {
  readonly name: string;
  readonly target: Document;
  /** Where its layers can be fetched again: "docker://host/name", "oci:/dir". */
  readonly source: string;
  /** Those of the platforms that were wanted; `target` itself where it is a manifest. */
  readonly manifests: readonly {
    readonly manifest: Document;
    readonly config: Document;
    readonly record: ManifestRecord;
  }[];
}

export function imageFromRow(row: Row): ImageRecord {
  return {
    name: String(row.name),
    digest: String(row.digest) as Digest,
    mediaType: String(row.media_type),
    size: Number(row.size),
    source: String(row.source),
    pinned: row.pinned === 1,
    createdAt: new Date(Number(row.created_at)),
    updatedAt: new Date(Number(row.updated_at)),
  };
}

export function listImages({ database }: StoreContext): ImageRecord[] {
  return database.all("SELECT * FROM images ORDER BY name").map(imageFromRow);
}

export function findImage({ database }: StoreContext, name: string): ImageRecord | undefined {
  const row = database.get("SELECT * FROM images WHERE name = ?", name);
  return row && imageFromRow(row);
}

/** Images whose target or one of whose manifests or configs has this digest, or a digest that starts so. */
export function findImagesByDigest({ database }: StoreContext, prefix: string): ImageRecord[] {
  const pattern = `${prefix}*`; // hexadecimal and a colon: nothing that GLOB would interpret
  return database
    .all(
      `SELECT DISTINCT images.* FROM images
         LEFT JOIN image_manifests ON image_manifests.image = images.name
         LEFT JOIN manifests ON manifests.digest = image_manifests.manifest
       WHERE images.digest GLOB ?1 OR manifests.digest GLOB ?1 OR manifests.config GLOB ?1 ORDER BY images.name`,
      pattern,
    )
    .map(imageFromRow);
}

export function manifestsOf(context: StoreContext, name: string): ManifestRecord[] {
  return context.database
    .all(
      `SELECT manifests.* FROM image_manifests JOIN manifests ON manifests.digest = image_manifests.manifest
       WHERE image_manifests.image = ? ORDER BY manifests.platform, manifests.digest`,
      name,
    )
    .map((row) => manifestFromRow(context, row));
}

function manifestFromRow({ database }: StoreContext, row: Row): ManifestRecord {
  const layers = database.all("SELECT * FROM manifest_layers WHERE manifest = ? ORDER BY position", String(row.digest));
  return {
    digest: String(row.digest) as Digest,
    config: String(row.config) as Digest,
    platform: String(row.platform),
    chainId: row.chain_id === "" ? undefined : (String(row.chain_id) as ChainId),
    layers: layers.map((layer) => ({
      diffId: String(layer.diff_id) as DiffId,
      digest: String(layer.digest) as Digest,
      mediaType: String(layer.media_type),
      size: Number(layer.size),
    })),
  };
}

/** The bytes exactly as received. NOT_FOUND when the store has no such document. */
export function getDocument(context: StoreContext, digest: string): Document {
  const found = findDocument(context, digest);
  if (found === undefined)
    throw new ShaleError("NOT_FOUND", `Cannot read ${digest}: the store has no such manifest or config`);
  return found;
}

export function findDocument({ database }: StoreContext, digest: string): Document | undefined {
  const row = database.get("SELECT media_type, bytes FROM documents WHERE digest = ?", digest);
  if (row === undefined) return undefined;
  return { digest: digest as Digest, mediaType: String(row.media_type), bytes: row.bytes as Uint8Array };
}

export function getConfig(context: StoreContext, manifest: ManifestRecord): ImageConfig {
  return decodeImageConfig(getDocument(context, manifest.config).bytes);
}

/**
 * Records an image under its name, in place of what had the name before. Where the store has a layer verified by its diffId,
 * the image gets that one and not one that is verified by its TOC. ABORTED, naming the layer, when one of its layers is not
 * in the store (any more): the caller fetches that one and tries again.
 */
export function commitImage(context: StoreContext, image: NewImage): void {
  const { database } = context;
  const now = Date.now();
  database.transaction(() => {
    const manifests = image.manifests.map((one) => ({ ...one, record: preferVerified(context, one) }));
    for (const { record } of manifests) claimLayersOf(context, image.name, record);
    addDocument(context, image.target);
    for (const { manifest, config, record } of manifests) {
      addDocument(context, manifest);
      addDocument(context, config);
      addManifest(context, record, image.source, now);
    }
    database.run(
      `INSERT INTO images (name, digest, media_type, size, source, created_at, updated_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
         ON CONFLICT (name) DO UPDATE SET digest = ?2, media_type = ?3, size = ?4, source = ?5, updated_at = ?6`,
      image.name,
      image.target.digest,
      image.target.mediaType,
      image.target.bytes.length,
      image.source,
      now,
    );
    database.run("DELETE FROM image_manifests WHERE image = ?", image.name);
    for (const { record } of image.manifests) {
      database.run("INSERT INTO image_manifests (image, manifest) VALUES (?, ?)", image.name, record.digest);
    }
    dropUnreferenced(context);
  });
  crashPoint("image:recorded");
}

/**
 * Has a manifest refer to these layers from now on, whatever it referred to before; nothing when the manifest was removed
 * meanwhile. ABORTED as for `commitImage`.
 */
export function replaceLayers(context: StoreContext, record: ManifestRecord): void {
  const { database } = context;
  database.transaction(() => {
    const row = database.get("SELECT 1 FROM manifests WHERE digest = ?", record.digest);
    if (row === undefined) return;
    claimLayersOf(context, record.digest, record);
    ensureManifestLayers(context, record);
  });
  crashPoint("image:layers-replaced");
}

function preferVerified(context: StoreContext, { record, config }: NewImage["manifests"][number]): ManifestRecord {
  if (!record.layers.some(({ diffId }) => isTocIdentity(diffId))) return record;
  const { diffIds } = decodeImageConfig(config.bytes);
  const layers = record.layers.map((layer, position) => {
    if (!isTocIdentity(layer.diffId)) return layer;
    const verified = claimLayer(context, diffIds[position]!);
    return verified === undefined ? layer : { ...layer, diffId: verified.diffId };
  });
  return manifestRecord(record.digest, record.config, record.platform, layers);
}

function claimLayersOf(context: StoreContext, name: string, { layers }: ManifestRecord): void {
  for (const { diffId } of layers) {
    if (claimLayer(context, diffId, "any") !== undefined) continue;
    throw new ShaleError("ABORTED", `Cannot record ${name}: layer ${diffId} is not in the store`);
  }
}

function addDocument({ database }: StoreContext, { digest, mediaType, bytes }: Document): void {
  database.run(
    // Bytes that do not match their digest any more are replaced by the verified ones.
    `INSERT INTO documents (digest, media_type, bytes) VALUES (?1, ?2, ?3)
       ON CONFLICT (digest) DO UPDATE SET bytes = ?3 WHERE bytes != ?3`,
    digest,
    mediaType,
    bytes,
  );
}

function addManifest(context: StoreContext, record: ManifestRecord, source: string, now: number): void {
  const { database } = context;
  database.run(
    "INSERT OR IGNORE INTO manifests (digest, config, platform, chain_id) VALUES (?, ?, ?, ?)",
    record.digest,
    record.config,
    record.platform,
    record.chainId ?? "",
  );
  ensureManifestLayers(context, record);
  for (const { diffId, digest, mediaType, size } of record.layers) {
    recordSource(context, diffId, { location: source, digest, mediaType, size }, now);
  }
}

/** The rows of a manifest's layers. There are others where a layer came in another way before: whole, or by its TOC. */
function ensureManifestLayers({ database }: StoreContext, record: ManifestRecord): void {
  const kept = database.all("SELECT diff_id FROM manifest_layers WHERE manifest = ? ORDER BY position", record.digest);
  if (kept.length > 0) {
    if (record.layers.every(({ diffId }, position) => kept[position]?.diff_id === diffId)) return;
    database.run("DELETE FROM manifest_layers WHERE manifest = ?", record.digest);
    database.run("UPDATE manifests SET chain_id = ? WHERE digest = ?", record.chainId ?? "", record.digest);
  }
  for (const [position, { diffId, digest, mediaType, size }] of record.layers.entries()) {
    database.run(
      `INSERT INTO manifest_layers
         (manifest, position, diff_id, digest, media_type, size, content_bytes, stored_bytes)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, content_bytes, own_bytes + metadata_bytes
           FROM layers WHERE diff_id = ?3 AND condemned IS NULL AND damage IS NULL ORDER BY form DESC LIMIT 1`,
      record.digest,
      position,
      diffId,
      digest,
      mediaType,
      size,
    );
  }
}

/** Removes the name. Metadata only: milliseconds for any image; `gc` frees what nothing needs any more. */
export function removeImage(context: StoreContext, name: string): void {
  const { database } = context;
  database.transaction(() => {
    const image = findImage(context, name);
    if (image === undefined) throw new ShaleError("NOT_FOUND", `Cannot remove ${name}: no image has this name`);
    if (image.pinned) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot remove ${name}: it is pinned`, {
        hint: `Run shale unpin ${name} first`,
      });
    }
    database.run("DELETE FROM images WHERE name = ?", name);
    dropUnreferenced(context);
  });
}

/** Manifests that no image has, and documents that nothing names. */
function dropUnreferenced({ database }: StoreContext): void {
  database.run(
    "DELETE FROM manifests WHERE digest NOT IN (SELECT manifest FROM image_manifests) AND digest NOT IN (SELECT manifest FROM mounts)",
  );
  database.run(
    `DELETE FROM documents WHERE digest NOT IN
       (SELECT digest FROM images UNION SELECT digest FROM manifests UNION SELECT config FROM manifests)`,
  );
}

export function setPinned(context: StoreContext, name: string, pinned: boolean): void {
  if (context.database.run("UPDATE images SET pinned = ? WHERE name = ?", pinned ? 1 : 0, name) === 0) {
    throw new ShaleError("NOT_FOUND", `Cannot ${pinned ? "pin" : "unpin"} ${name}: no image has this name`);
  }
}

export interface LayerSource {
  readonly location: string;
  readonly digest: Digest;
  readonly mediaType: string;
  readonly size: number;
}

/** Where a layer was seen, newest first. */
export function sourcesOf({ database }: StoreContext, diffId: DiffId): LayerSource[] {
  return database.all("SELECT * FROM sources WHERE diff_id = ? ORDER BY seen_at DESC, location", diffId).map((row) => ({
    location: String(row.location),
    digest: String(row.digest) as Digest,
    mediaType: String(row.media_type),
    size: Number(row.size),
  }));
}

/** Remembers where a layer was seen, under which digest; forgotten with the layer. The caller has verified that they belong together. */
export function recordSource({ database }: StoreContext, diffId: DiffId, source: LayerSource, now = Date.now()): void {
  database.run(
    `INSERT INTO sources (diff_id, location, digest, media_type, size, seen_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
       ON CONFLICT (diff_id, location) DO UPDATE SET digest = ?3, media_type = ?4, size = ?5, seen_at = ?6`,
    diffId,
    source.location,
    source.digest,
    source.mediaType,
    source.size,
    now,
  );
}

/**
 * DiffIds of the layers in sight that came out of a blob with this digest. One blob has one diffId, so there is one at most
 * for blobs that were verified; a list, because older records may name a layer that was never fetched by that digest. A
 * layer that is verified by its TOC is not among them: nobody knows the diffId of what it came out of.
 */
export function diffIdsOfBlob({ database }: StoreContext, digest: Digest): DiffId[] {
  return database
    .all(
      `SELECT DISTINCT sources.diff_id FROM sources
         JOIN layers ON layers.diff_id = sources.diff_id AND layers.condemned IS NULL AND layers.damage IS NULL
       WHERE sources.digest = ? AND NOT sources.${SQL_IS_TOC_IDENTITY}`,
      digest,
    )
    .map((row) => String(row.diff_id) as DiffId);
}

export function manifestRecord(
  digest: Digest,
  config: Digest,
  platform: string,
  layers: readonly ManifestLayer[],
): ManifestRecord {
  return {
    digest,
    config,
    platform,
    chainId: layers.length === 0 ? undefined : chainIdOf(layers.map((layer) => layer.diffId)),
    layers,
  };
}
