/**
 * A checkpoint as an OCI image: one layer, which is the archive, and annotations of the manifest by which engines know it. The
 * families, as checkpointctl lib/metadata.go and podman libpod/define/annotations.go have them: podman restores by its own,
 * CRI-O by its legacy key or org.criu's, containerd and the kubelet by org.criu's. An image with all of them restores everywhere.
 */
import { type DiffId, type Digest, digestOf, MediaType } from "../../oci/index.ts";
import type { CheckpointSurvey } from "../show/index.ts";

const PODMAN = "io.podman.annotations.checkpoint.";
const CRIU = "org.criu.checkpoint.";
export const CRIO_NAME = "io.kubernetes.cri-o.annotations.checkpoint.name";
export const CRIU_NAME = `${CRIU}container.name`;
export const PODMAN_NAME = `${PODMAN}name`;

/** What engines look for; empty values are left out. `more` is added, and wins. */
export function checkpointAnnotations(
  survey: CheckpointSurvey,
  more: Readonly<Record<string, string>> = {},
): Record<string, string> {
  const { container, spec, tree } = survey;
  // engines need a name, and an archive without one has been made by hand
  const name = container.name ?? container.id ?? "checkpoint";
  const image = container.image;
  const requested = container.requestedImage ?? image;
  const all: Readonly<Record<string, string | undefined>> = {
    [PODMAN_NAME]: name,
    [`${PODMAN}rawImageName`]: requested,
    [`${PODMAN}rootfsImageID`]: container.imageId,
    [`${PODMAN}rootfsImageName`]: image,
    [`${PODMAN}runtime.name`]: container.runtime,
    [`${PODMAN}host.arch`]: tree.architecture,
    [CRIO_NAME]: name,
    [CRIU_NAME]: name,
    [`${CRIU}engine.name`]: spec.engine,
    [`${CRIU}pod.name`]: spec.pod?.name,
    [`${CRIU}pod.namespace`]: spec.pod?.namespace,
    [`${CRIU}pod.uid`]: spec.pod?.uid,
    [`${CRIU}rootfsImageName`]: image,
    [`${CRIU}rootfsImageUserRequested`]: requested,
    [`${CRIU}rootfsImageSha`]: container.imageReference,
    [`${CRIU}rootfsImageID`]: container.imageId,
    [`${CRIU}rawImageName`]: requested,
    [`${CRIU}runtime.name`]: container.runtime,
    [`${CRIU}host.arch`]: tree.architecture,
    ...more,
  };
  return Object.fromEntries(Object.entries(all).filter((pair): pair is [string, string] => !!pair[1]));
}

export interface CheckpointImage {
  readonly config: { readonly bytes: Uint8Array; readonly digest: Digest };
  readonly manifest: { readonly bytes: Uint8Array; readonly digest: Digest };
}

/** The documents of an image whose only layer is the archive. The same for the same arguments. */
export function describeImage(
  layer: { readonly diffId: DiffId; readonly digest: Digest; readonly size: number; readonly mediaType: string },
  annotations: Readonly<Record<string, string>>,
  survey: CheckpointSurvey,
): CheckpointImage {
  const { created, checkpointed } = survey.container;
  const time = checkpointed ?? created;
  const config = encode({
    ...(time === undefined || Number.isNaN(Date.parse(time)) ? {} : { created: new Date(time).toISOString() }),
    architecture: survey.tree.architecture ?? "amd64",
    os: "linux",
    config: { WorkingDir: "/" },
    rootfs: { type: "layers", diff_ids: [layer.diffId] },
    history: [{ created_by: "shale checkpoint" }],
  });
  const { mediaType, digest, size } = layer;
  const manifest = encode({
    schemaVersion: 2,
    mediaType: MediaType.OCI_MANIFEST,
    config: { mediaType: MediaType.OCI_CONFIG, digest: config.digest, size: config.bytes.length },
    layers: [{ mediaType, digest, size }],
    annotations: Object.fromEntries(Object.entries(annotations).sort(([a], [b]) => (a < b ? -1 : 1))),
  });
  return { config, manifest };
}

/** The name of the container that an image is a checkpoint of; undefined for any other image. */
export function checkpointNameOf(annotations: Readonly<Record<string, string>>): string | undefined {
  return annotations[PODMAN_NAME] ?? annotations[CRIU_NAME] ?? annotations[CRIO_NAME] ?? annotations[`${CRIU}pod.name`];
}

function encode(value: object): { readonly bytes: Uint8Array; readonly digest: Digest } {
  const bytes = Buffer.from(JSON.stringify(value));
  return { bytes, digest: digestOf(bytes) };
}
