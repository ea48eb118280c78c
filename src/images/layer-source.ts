/** A layer where it was seen before: for a repair, and for completing what came in parts. */
import { ShaleError } from "../errors/index.ts";
import { TocAnnotation } from "../formats/toc/index.ts";
import { type Descriptor, type DiffId, parseReference } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import { isTocIdentity, type LayerSource, type StoreOperation, tocDigestOf } from "../store/index.ts";
import { findContainerdBlob, parseContainerdLocation } from "./containerd-content.ts";
import { type OriginLayer, registryParts } from "./origin.ts";
import { LinkMeter } from "./partial/index.ts";

export interface LayerSourceOptions {
  readonly registry: () => Promise<RegistryClient>;
  readonly signal: AbortSignal;
}

/**
 * The layer as its source offers it. Of a layer that is verified by its TOC, `diffId` is its identity: then only a registry
 * that it can be read from in parts will do. NOT_FOUND where the source has it no more, UNIMPLEMENTED for other kinds of sources.
 */
export async function openLayerSource(
  operation: StoreOperation,
  diffId: DiffId,
  source: LayerSource,
  options: LayerSourceOptions,
): Promise<OriginLayer> {
  const { location, digest, mediaType, size } = source;
  if (location.startsWith("docker://")) {
    const reference = parseReference(`${location.slice("docker://".length)}@${digest}`);
    const client = await options.registry();
    const annotations: Record<string, string> = isTocIdentity(diffId)
      ? { [TocAnnotation.ESTARGZ_DIGEST]: tocDigestOf(diffId) }
      : {};
    const descriptor: Descriptor = { mediaType, digest, size, annotations, urls: [] };
    return {
      diffId,
      digest,
      mediaType,
      size,
      open: (offset, signal, end = size) => client.openBlob(reference, descriptor, { offset, end, signal }),
      ...(isTocIdentity(diffId) ? { parts: registryParts(client, reference, descriptor, new LinkMeter()) } : {}),
    };
  }
  if (location.startsWith("oci:")) {
    const { openOciLayout } = await import("../archives/index.ts");
    const layout = openOciLayout(location.slice("oci:".length));
    return { diffId, digest, mediaType, size, file: layout.getBlob({ digest, size }) };
  }
  const containerd = parseContainerdLocation(location);
  if (containerd !== undefined) {
    const file = findContainerdBlob(containerd, digest, size);
    if (file !== undefined) return { diffId, digest, mediaType, size, file };
    throw new ShaleError(
      "NOT_FOUND",
      `Cannot fetch ${digest}: containerd's content store in ${containerd} has it no more`,
    );
  }
  const archive = /^(?:docker|oci)-archive:(.+)$/s.exec(location)?.[1];
  if (archive === undefined)
    throw new ShaleError("UNIMPLEMENTED", `Cannot fetch from ${location}: the kind is unknown`);
  const { getArchivedLayer } = await import("./load.ts");
  return await getArchivedLayer(archive, diffId, digest, operation.temporaryDirectory(), options.signal);
}
