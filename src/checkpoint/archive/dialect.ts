/** Who wrote an archive: the dialects differ in how changes and deletions of the root file system are kept. */
import type { ByteString } from "../../bytes/index.ts";
import type { Section } from "./sections.ts";

/**
 * - podman: a plain rootfs-diff.tar, deletions in deleted.files; network.status, /dev/shm and volumes
 * - crio: the same two, bind.mounts beside them; pods have pod.options
 * - containerd: rootfs-diff.tar is the compressed layer, deletions are AUFS whiteouts in it; status and status.dump
 * - inline: the changes are members of the archive below rootfs-diff/ (containers/podman PR 24984)
 * - unknown: none of what tells them apart, e.g. a container without changes and network
 */
export type Dialect = "podman" | "crio" | "containerd" | "inline" | "unknown";

/** Fed with what is found in an archive, in any order and as far as the reader goes. */
export class DialectDetector {
  readonly #seen = new Set<Exclude<Dialect, "unknown">>();

  member(path: ByteString, section: Section): void {
    if (path === "status.dump" || path === "status" || path === "container.log") this.#seen.add("containerd");
    else if (section.kind === "mounts" || section.kind === "pod") this.#seen.add("crio");
    else if (section.kind === "rootfs-inline") this.#seen.add("inline");
    else if (["network", "shm", "volume", "artifacts"].includes(section.kind)) this.#seen.add("podman");
  }

  /** The compression of rootfs-diff.tar, when it was looked at. */
  rootfs(compression: "none" | "gzip" | "zstd"): void {
    if (compression !== "none") this.#seen.add("containerd");
  }

  /** The most telling sign first. */
  get dialect(): Dialect {
    for (const dialect of ["inline", "containerd", "crio", "podman"] as const) {
      if (this.#seen.has(dialect)) return dialect;
    }
    return "unknown";
  }
}
