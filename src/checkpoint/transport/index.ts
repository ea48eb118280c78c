/**
 * Checkpoints as OCI images in registries.
 *
 * `pushCheckpoint`: the archive at `path` becomes an image of one layer with the annotations of podman, CRI-O and
 * containerd/kubelet. A plain archive is read once, compressed on the way and sent in pieces; there is no temporary file, and
 * memory is bounded. One that gzip or zstd compressed is sent as it is, unless the registry has it. The manifest comes last, so
 * a push that failed has left nothing under the name.
 *
 * `pullCheckpoint`: back into a plain archive at `output`, mode 0600. It gets its name when the bytes had the digest of the
 * layer and the tar the diffId of the config, and when it is durable; a pull that failed leaves nothing.
 */
export { checkpointAnnotations, checkpointNameOf, describeImage } from "./annotations.ts";
export { type PulledCheckpoint, pullCheckpoint, type PullOptions } from "./pull.ts";
export { pushCheckpoint, type PushedCheckpoint, type PushOptions } from "./push.ts";
