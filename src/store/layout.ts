/**
 * Where things are below ROOT. The only place that composes paths of the store; ids are ours (hexadecimal), digests were
 * parsed, so no name from input reaches a path.
 */
import { join } from "node:path";

export class Layout {
  readonly root: string;

  constructor(root: string) {
    this.root = root;
  }

  get database(): string {
    return join(this.root, "shale.db");
  }
  get blobs(): string {
    return join(this.root, "blobs");
  }
  get layers(): string {
    return join(this.root, "layers");
  }
  get merged(): string {
    return join(this.root, "merged");
  }
  get staging(): string {
    return join(this.root, "staging");
  }
  get leases(): string {
    return join(this.root, "leases");
  }
  get downloads(): string {
    return join(this.root, "downloads");
  }
  get quarantine(): string {
    return join(this.root, "quarantine");
  }
  /** Mount points and upper directories that shale makes for itself. */
  get mounts(): string {
    return join(this.root, "mounts");
  }
  /** Directories of containerd's snapshots, each named by a number of ours: names stay short for the kernel's option limit. */
  get snapshots(): string {
    return join(this.root, "snapshots");
  }
  /** Held by the one process that makes and removes snapshots. */
  get snapshotterLock(): string {
    return join(this.root, "snapshotter.lock");
  }
  /** Files that checkouts share by hard link. */
  get links(): string {
    return join(this.root, "links");
  }
  /** Files that checkouts share blocks with. */
  get clones(): string {
    return join(this.root, "clones");
  }
  get linksLock(): string {
    return join(this.root, "links.lock");
  }
  get garbageLock(): string {
    return join(this.root, "gc.lock");
  }

  get reserve(): string {
    return join(this.root, "reserve");
  }

  blob(id: string): string {
    return join(this.root, "blobs", id);
  }
  layer(id: string): string {
    return join(this.root, "layers", id);
  }
  layerImage(id: string): string {
    return join(this.root, "layers", id, "meta.erofs");
  }
  layerRecipe(id: string): string {
    return join(this.root, "layers", id, "tar.headers");
  }
  /** Of a layer that was pulled with one. */
  layerToc(id: string): string {
    return join(this.root, "layers", id, "toc");
  }
  mergedImage(id: string): string {
    return join(this.root, "merged", id);
  }
  snapshot(id: number): string {
    return join(this.root, "snapshots", String(id));
  }
  hostMount(id: number): string {
    return join(this.root, "mounts", String(id));
  }
  lease(id: string): string {
    return join(this.root, "leases", id);
  }
  leaseStaging(leaseId: string): string {
    return join(this.root, "staging", leaseId);
  }
  download(digest: string): string {
    return join(this.root, "downloads", digest.replace(":", "-"));
  }

  /** Every directory that a store has; all are made before the database says that it is one. */
  get directories(): readonly string[] {
    return [
      this.root,
      this.blobs,
      this.layers,
      this.merged,
      this.staging,
      this.leases,
      this.downloads,
      this.quarantine,
      this.mounts,
      this.links,
      this.clones,
      this.snapshots,
    ];
  }
}
