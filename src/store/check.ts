/**
 * fsck of the store: what the database says against what is on disk, down to every payload's digest and every layer's tar.
 *
 * Looking changes nothing. `quarantineDamage` (check-report.ts) then takes what is damaged out of sight, in one transaction, so that nothing
 * refers to it any more and the next pull (or `check --repair`) fetches it again; what is sound is never touched.
 * Runs beside pulls and removals without false alarms: it holds a lease, and asks again before it calls something lost.
 */
import { createHash, hash } from "node:crypto";
import { join } from "node:path";
import { toHex } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { verifySuperblock } from "../formats/erofs/index.ts";
import { decodePayloads } from "../formats/payload-table/index.ts";
import { type Digest, digestAlgorithm, digestOf } from "../oci/index.ts";
import { bootId, type FileSource, fileSource, findFile, list } from "../sys/index.ts";
import { checkAgainstToc } from "./check-toc.ts";
import type { CheckOptions, CheckReport, Finding } from "./check-report.ts";
import type { StoreContext } from "./context.ts";
import { isDamage, problemOf } from "./damage.ts";
import { type LayerRecord, layerFromRow } from "./layers.ts";
import { type Lease, unknownFiles } from "./leases.ts";
import { checkedLinks } from "./links.ts";
import { blobsOfLayer, forEachExtent } from "./liveness.ts";
import { listSnapshots } from "./snapshots.ts";
import { isTocIdentity } from "./toc-identity.ts";
import { openTar } from "./trees.ts";

const PIECE = 1024 * 1024;

/** Asynchronous only to let signals and progress through between pieces of work. */
export async function checkStore(
  context: StoreContext,
  lease: Lease,
  options: CheckOptions = {},
): Promise<CheckReport> {
  const checker = new Checker(context, lease, options);
  await checker.run();
  return checker.report();
}

class Checker {
  readonly #context: StoreContext;
  readonly #lease: Lease;
  readonly #options: CheckOptions;
  readonly #findings: Finding[] = [];
  /** "blob:offset" of damaged payloads; a blob as such when its table is lost. */
  readonly #badPayloads = new Map<string, string>();
  readonly #badBlobs = new Map<string, string>();
  #layers = 0;
  #layersByToc = 0;
  #payloads = 0;
  #bytes = 0;

  constructor(context: StoreContext, lease: Lease, options: CheckOptions) {
    this.#context = context;
    this.#lease = lease;
    this.#options = options;
  }

  report(): CheckReport {
    return {
      findings: this.#findings,
      layers: this.#layers,
      layersByToc: this.#layersByToc,
      payloads: this.#payloads,
      bytes: this.#bytes,
    };
  }

  async run(): Promise<void> {
    const { database } = this.#context;
    const layers = database.all("SELECT * FROM layers WHERE condemned IS NULL AND damage IS NULL").map(layerFromRow);
    for (const row of database.all("SELECT key, id FROM blobs WHERE removed = 0")) {
      await this.#checkBlob(String(row.id), Number(row.key), layers);
    }
    for (const layer of layers) await this.#checkLayer(layer);
    this.#checkMerged();
    this.#checkIndex();
    this.#checkDocuments();
    this.#checkImages();
    this.#checkSnapshots();
    this.#checkStrayFiles();
    if (!this.#options.quick) await this.#checkLinks();
  }

  async #checkLinks(): Promise<void> {
    for (const { path, links, size, sound } of checkedLinks(this.#context)) {
      const sharers = links === 1 ? "no checkout has it" : `${links - 1} names in checkouts have what was written`;
      if (!sound) this.#findings.push({ kind: "link source", path, problem: `it was written to; ${sharers}` });
      await this.#breathe(size);
    }
  }

  async #breathe(bytes: number): Promise<void> {
    this.#bytes += bytes;
    this.#options.onBytes?.(bytes);
    const { signal } = this.#options;
    await new Promise((resolve) => setImmediate(resolve));
    if (signal?.aborted) throw new ShaleError("CANCELLED", "Check stopped on request");
  }

  async #checkBlob(id: string, key: number, layers: readonly LayerRecord[]): Promise<void> {
    const { layout, database } = this.#context;
    const gone = () => database.get("SELECT 1 FROM blobs WHERE key = ? AND removed = 0", key) === undefined;
    let source: FileSource;
    try {
      source = fileSource(layout.blob(id));
    } catch (error) {
      if (gone()) return;
      this.#badBlobs.set(id, problemOf(error));
      return;
    }
    using _ = source;
    try {
      // Without its layer, a blob has holes where nothing is needed any more.
      const live = layers.some((layer) => layer.id === id) ? undefined : this.#liveOffsets(id, layers);
      for (const { offset, length, digest } of decodePayloads(source)) {
        if (this.#options.quick || (live !== undefined && !live.has(offset))) continue;
        this.#payloads++;
        const hasher = createHash("sha256");
        for (let at = 0; at < length; at += PIECE) {
          const piece = source.read(offset + at, Math.min(PIECE, length - at));
          hasher.update(piece);
          if (at > 0) await this.#breathe(piece.length);
          else if (length > PIECE / 8) await this.#breathe(piece.length);
          else this.#count(piece.length);
        }
        const found = hasher.digest();
        if (Buffer.compare(found, digest) === 0) continue;
        if (gone()) return;
        const problem = `its content is ${toHex(found)}, it was stored as ${toHex(digest)}`;
        this.#badPayloads.set(`${id}:${offset}`, problem);
        this.#findings.push({ kind: "payload", blob: id, offset, problem });
      }
    } catch (error) {
      if (ShaleError.is(error, "CANCELLED")) throw error;
      if (!gone()) this.#badBlobs.set(id, problemOf(error));
    }
  }

  #count(bytes: number): void {
    this.#bytes += bytes;
    this.#options.onBytes?.(bytes);
  }

  #liveOffsets(blob: string, layers: readonly LayerRecord[]): Set<number> {
    const live = new Set<number>();
    for (const layer of layers) {
      try {
        if (!blobsOfLayer(this.#context, layer.id).includes(blob)) continue;
        forEachExtent(this.#context, layer.id, (of, offset) => {
          if (of === blob) live.add(offset);
        });
      } catch (error) {
        if (!isDamage(error)) throw error; // reported when the layer's turn comes
      }
    }
    return live;
  }

  async #checkLayer(layer: LayerRecord): Promise<void> {
    this.#layers++;
    const byToc = isTocIdentity(layer.diffId);
    if (byToc) this.#layersByToc++;
    let problem: string | undefined;
    try {
      problem = this.#checkMetadata(layer) ?? this.#checkExtents(layer);
      if (!this.#options.quick) problem ??= byToc ? await this.#checkToc(layer) : await this.#checkTar(layer);
    } catch (error) {
      if (!isDamage(error)) throw error;
      problem = problemOf(error);
    }
    if (problem === undefined) return;
    const { database } = this.#context;
    if (database.get("SELECT 1 FROM layers WHERE id = ? AND condemned IS NULL", layer.id) === undefined) return;
    this.#findings.push({ kind: "layer", diffId: layer.diffId, id: layer.id, problem });
  }

  #checkMetadata(layer: LayerRecord): string | undefined {
    const { layout } = this.#context;
    for (const [name, path, expected] of [
      ["meta.erofs", layout.layerImage(layer.id), layer.imageSha256],
      ["tar.headers", layout.layerRecipe(layer.id), layer.recipeSha256],
    ] as const) {
      using source = fileSource(path);
      if (name === "meta.erofs") verifySuperblock(source);
      if (sha256Of(source) !== expected) return `${name} is not what was written`;
    }
    return undefined;
  }

  /** Every extent must be a payload that is there and sound. */
  #checkExtents(layer: LayerRecord): string | undefined {
    let problem: string | undefined;
    for (const blob of blobsOfLayer(this.#context, layer.id)) {
      const bad = this.#badBlobs.get(blob);
      if (bad !== undefined) return `blob ${blob} that it refers to: ${bad}`;
    }
    if (this.#badPayloads.size === 0) return undefined;
    forEachExtent(this.#context, layer.id, (blob, offset) => {
      const bad = this.#badPayloads.get(`${blob}:${offset}`);
      if (bad !== undefined) problem ??= `a payload of blob ${blob} at ${offset}: ${bad}`;
    });
    return problem;
  }

  /** In place of its tar, which is not here: the TOC against the layer's identity, and every content against the TOC. */
  async #checkToc(layer: LayerRecord): Promise<string | undefined> {
    let pending = 0;
    return await checkAgainstToc(this.#context, layer, async (count) => {
      pending += count;
      if (pending < PIECE) return;
      await this.#breathe(pending);
      pending = 0;
    });
  }

  async #checkTar(layer: LayerRecord): Promise<string | undefined> {
    using tar = openTar(this.#context, layer);
    const hasher = createHash("sha256");
    let pending = 0;
    for (const piece of tar.read()) {
      hasher.update(piece);
      pending += piece.length;
      if (pending < PIECE) continue;
      await this.#breathe(pending);
      pending = 0;
    }
    await this.#breathe(pending);
    const found = `sha256:${hasher.digest("hex")}`;
    return found === layer.diffId ? undefined : `its tar comes back as ${found}`;
  }

  #checkMerged(): void {
    const { layout, database } = this.#context;
    for (const row of database.all("SELECT id, chain_id, image_sha256 FROM merged WHERE condemned IS NULL")) {
      const id = String(row.id);
      let problem: string | undefined;
      try {
        using source = fileSource(layout.mergedImage(id));
        if (sha256Of(source) !== row.image_sha256) problem = "is not what was written";
      } catch (error) {
        if (!isDamage(error)) throw error;
        problem = problemOf(error);
      }
      if (problem === undefined || database.get("SELECT 1 FROM merged WHERE id = ?", id) === undefined) continue;
      this.#findings.push({ kind: "merged image", id, problem });
    }
  }

  /** Rows that point to what is not there would spoil the next ingest: the one thing that this cache must not do. */
  #checkIndex(): void {
    const { layout, database } = this.#context;
    for (const row of database.all("SELECT key, id FROM blobs WHERE removed = 0")) {
      const key = Number(row.key);
      const rows = new Map<number, { digest: Uint8Array; length: number }>();
      for (const one of database.all("SELECT digest, offset, length FROM payloads WHERE blob = ?", key)) {
        rows.set(Number(one.offset), { digest: one.digest as Uint8Array, length: Number(one.length) });
      }
      if (rows.size === 0) continue;
      try {
        using source = fileSource(layout.blob(String(row.id)));
        for (const { offset, length, digest } of decodePayloads(source)) {
          const one = rows.get(offset);
          if (one !== undefined && one.length === length && Buffer.compare(one.digest, digest) === 0)
            rows.delete(offset);
        }
      } catch (error) {
        if (!isDamage(error)) throw error;
      }
      for (const [offset, { digest }] of rows) {
        if (database.get("SELECT 1 FROM payloads WHERE digest = ? AND blob = ?", digest, key) === undefined) continue;
        this.#findings.push({
          kind: "index row",
          digest: toHex(digest),
          problem: `blob ${row.id} has no such payload at ${offset}`,
        });
      }
    }
    const lost = database.all(
      "SELECT digest FROM payloads WHERE blob NOT IN (SELECT key FROM blobs WHERE removed = 0)",
    );
    for (const row of lost) {
      this.#findings.push({ kind: "index row", digest: toHex(row.digest as Uint8Array), problem: "its blob is gone" });
    }
    const stray = database.all(
      "SELECT digest FROM chunks WHERE layer NOT IN (SELECT id FROM layers WHERE condemned IS NULL AND damage IS NULL)",
    );
    for (const row of stray) {
      const digest = toHex(row.digest as Uint8Array);
      this.#findings.push({ kind: "index row", digest, problem: "the layer of its chunk is gone" });
    }
  }

  #checkDocuments(): void {
    for (const row of this.#context.database.all("SELECT digest, bytes FROM documents")) {
      const digest = String(row.digest) as Digest;
      const found = digestOf(row.bytes as Uint8Array, digestAlgorithm(digest));
      if (found !== digest) this.#findings.push({ kind: "document", digest, problem: `its bytes are ${found}` });
    }
  }

  #checkImages(): void {
    const { database } = this.#context;
    const rows = database.all(
      `SELECT image_manifests.image AS image, manifest_layers.diff_id AS diff_id FROM image_manifests
         JOIN manifest_layers ON manifest_layers.manifest = image_manifests.manifest
       WHERE manifest_layers.diff_id NOT IN (SELECT diff_id FROM layers WHERE condemned IS NULL AND damage IS NULL)`,
    );
    for (const row of rows) {
      this.#findings.push({
        kind: "image",
        name: String(row.image),
        problem: `layer ${row.diff_id} is not in the store`,
      });
    }
  }

  #checkSnapshots(): void {
    const { layout, database } = this.#context;
    const inSight = "SELECT 1 FROM layers WHERE diff_id = ? AND condemned IS NULL AND damage IS NULL";
    for (const { id, name, kind, diffId, directory, unsyncedSince } of listSnapshots(this.#context)) {
      let problem: string | undefined;
      if (diffId !== undefined && database.get(inSight, diffId) === undefined) {
        problem = `layer ${diffId} is not in the store`;
      } else if (kind === "committed" && directory) {
        if (findFile(layout.snapshot(id)) === undefined) problem = "its directory is gone";
        else if (unsyncedSince !== undefined && unsyncedSince !== bootId()) {
          problem = "it was committed just before the machine went down, and may lack files";
        }
      }
      if (problem === undefined) continue;
      // Removed while this looked?
      if (database.get("SELECT 1 FROM snapshots WHERE id = ?", id) === undefined) continue;
      this.#findings.push({ kind: "snapshot", name, problem });
    }
  }

  #checkStrayFiles(): void {
    const { layout, database } = this.#context;
    // A directory with a number and without a snapshot is what `remove` leaves to the next cleanup.
    for (const { name } of list(layout.snapshots)) {
      if (/^[1-9][0-9]*$/.test(name)) continue;
      const path = join(layout.snapshots, name);
      this.#findings.push({ kind: "stray file", path, problem: "it is not the directory of a snapshot" });
    }
    for (const [, path] of unknownFiles(layout, database, this.#lease.id)) {
      this.#findings.push({ kind: "stray file", path, problem: "the database does not know it" });
    }
  }
}

function sha256Of(source: FileSource): string {
  if (source.size <= PIECE) return hash("sha256", source.read(0, source.size), "hex");
  const hasher = createHash("sha256");
  for (let at = 0; at < source.size; at += PIECE) hasher.update(source.read(at, Math.min(PIECE, source.size - at)));
  return hasher.digest("hex");
}
