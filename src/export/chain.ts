/**
 * Exports of a chain of layers that no image of the store has: containerd keeps manifest and config, the store has the layers. What
 * stands for the manifest is the chain id, or for one layer its diffId, so names, UUIDs and salts follow from the content alone.
 */
import { type ChainId, chainIdOf, type DiffId, type Digest, MediaType } from "../oci/index.ts";
import { manifestRecord, type ManifestRecord, type StoreOperation } from "../store/index.ts";
import type { Sidecar } from "./sidecar.ts";

/** As the manifest of an image that has these layers as plain tars, lowest first. NOT_FOUND when one is not in the store. */
export function chainManifest(operation: StoreOperation, diffIds: readonly DiffId[]): ManifestRecord {
  const layers = diffIds.map((diffId) => ({
    diffId,
    digest: diffId as string as Digest, // of the uncompressed blob
    mediaType: MediaType.OCI_LAYER,
    size: operation.getLayer(diffId).tarSize,
  }));
  const chain = chainIdOf(diffIds) as ChainId as string as Digest;
  return manifestRecord(chain, chain, "", layers);
}

/** Whether an export was made of a chain; then it lives as long as all of its layers do. */
export function isOfChain({ manifest, chainId }: Sidecar["image"]): boolean {
  return manifest === chainId;
}
