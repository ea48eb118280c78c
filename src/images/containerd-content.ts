/** Blobs in containerd's content store, read as files: layout of its local content plugin, the same from 1.0 to 2.x. */
import { join } from "node:path";
import type { Digest } from "../oci/index.ts";
import { digestAlgorithm, digestHex } from "../oci/index.ts";
import type { FeedSource } from "../store/index.ts";
import { findFile } from "../sys/index.ts";

/**
 * The file of a complete blob below containerd's root, or undefined where it can't be seen from here. containerd renames blobs
 * into place when they are complete; what they hold is verified by whoever ingests it.
 */
export function findContainerdBlob(root: string, digest: Digest, size: number): FeedSource | undefined {
  const directory = "io.containerd.content.v1.content/blobs";
  const path = join(root, directory, digestAlgorithm(digest), digestHex(digest));
  const status = findFile(path);
  if (status?.kind !== "file" || status.size !== size) return undefined;
  return { path, offset: 0, length: size };
}

/** As a location of a layer's source, for a repair. */
export function containerdLocation(root: string): string {
  return `containerd:${root}`;
}

export function parseContainerdLocation(location: string): string | undefined {
  return /^containerd:(\/.*)$/s.exec(location)?.[1];
}
