/** The lower layers of an overlay as one tree, which is asked about single paths. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { errnoOf, ShaleError } from "../../errors/index.ts";
import type { TarHeader } from "../../formats/tar/index.ts";
import {
  closeFile,
  findAt,
  listDirectory,
  openDirectoryBeneath,
  openFileBeneath,
  readXattrsAt,
  type Statx,
  statDescriptor,
} from "../../sys/index.ts";
import { type OpenContent, openUnchanged } from "./entry.ts";
import { isOpaque, overlayXattr } from "./overlay.ts";
import { Tree } from "./tree.ts";

export interface LowerFile {
  readonly status: Statx;
  readonly xattrs: TarHeader["xattrs"];
}

const S_IFMT = 0o170000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFCHR = 0o020000;
/** Directories whose layers are remembered. */
const REMEMBERED = 4096;

export class LowerLayers implements Disposable {
  readonly #layers: readonly Tree[];
  /** Path of a directory -> the layers that it is merged from, uppermost first. */
  readonly #merged = new Map<ByteString, readonly Tree[]>();

  /** Uppermost first, as overlayfs lists them; `directories` may be none. */
  constructor(directories: readonly string[]) {
    const layers: Tree[] = [];
    using onFailure = new DisposableStack();
    for (const path of directories) layers.push(onFailure.use(new Tree(path, "the lower directory")));
    onFailure.move();
    this.#layers = layers;
  }

  /** Whether there are any: without them nothing is known of what an upper directory hides. */
  get known(): boolean {
    return this.#layers.length > 0;
  }

  /** The file that has this path in the merged lower layers; "" is their root. */
  find(path: ByteString): LowerFile | undefined {
    return this.#locate(path);
  }

  /** The names in a directory of the merged lower layers; none when it is no directory there. */
  names(path: ByteString): ReadonlySet<ByteString> {
    const names = new Set<ByteString>();
    const gone = new Set<ByteString>();
    for (const layer of this.#mergedFrom(path)) {
      const directory = openDirectoryBeneath(layer.fd, path);
      try {
        for (const { name, isDirectory } of listDirectory(directory)) {
          if (names.has(name) || gone.has(name)) continue;
          const status = isDirectory ? undefined : findAt(directory, name);
          const deleted = status !== undefined && isDeletion({ status, xattrs: readXattrsAt(directory, name) });
          (deleted ? gone : names).add(name);
        }
      } finally {
        closeFile(directory);
      }
    }
    return names;
  }

  /**
   * The content that an upper file with only metadata of its own (metacopy) has below, at `path`, or where `redirect`
   * (absolute, or a name in the same directory) leads. FAILED_PRECONDITION when it is not in these layers.
   */
  openContent(path: ByteString, redirect: ByteString | undefined, size: number): OpenContent {
    let at = redirect === undefined ? path : redirected(path, redirect);
    for (const layer of this.#layers) {
      const file = fileIn(layer, at);
      if (file === undefined) continue;
      if ((file.status.mode & S_IFMT) !== S_IFREG) break;
      if (overlayXattr(file.xattrs, "metacopy") === undefined) {
        if (file.status.size !== size) break;
        return openUnchanged(openFileBeneath(layer.fd, at), file.status, at);
      }
      // This layer has metadata only, too: the content is in one below it.
      const further = overlayXattr(file.xattrs, "redirect");
      if (further !== undefined) at = redirected(at, further);
    }
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `Cannot write ${displayBytes(path)} to the checkpoint: the upper directory has only its metadata (metacopy)`,
      { hint: "Name all lower directories of the container with --lower, uppermost first" },
    );
  }

  [Symbol.dispose](): void {
    for (const layer of this.#layers) layer[Symbol.dispose]();
  }

  #locate(path: ByteString): LowerFile | undefined {
    const slash = path.lastIndexOf("/");
    const layers = path === "" ? this.#layers : this.#mergedFrom(slash < 0 ? "" : path.slice(0, slash));
    for (const layer of layers) {
      const file = fileIn(layer, path);
      if (file !== undefined) return isDeletion(file) ? undefined : file;
    }
    return undefined;
  }

  #mergedFrom(path: ByteString): readonly Tree[] {
    if (path === "") return this.#layers;
    const known = this.#merged.get(path);
    if (known !== undefined) return known;
    const slash = path.lastIndexOf("/");
    const found: Tree[] = [];
    for (const layer of this.#mergedFrom(slash < 0 ? "" : path.slice(0, slash))) {
      const file = fileIn(layer, path);
      if (file === undefined) continue;
      if ((file.status.mode & S_IFMT) !== S_IFDIR) break;
      if (overlayXattr(file.xattrs, "redirect") !== undefined) throw redirectedDirectory(path, layer.path);
      found.push(layer);
      if (isOpaque(file.xattrs)) break;
    }
    if (this.#merged.size >= REMEMBERED) this.#merged.clear();
    this.#merged.set(path, found);
    return found;
  }
}

/** A directory that was renamed in place of being copied: its content lies elsewhere in the lower layers. */
export function redirectedDirectory(path: ByteString, tree: string): ShaleError {
  return new ShaleError(
    "UNIMPLEMENTED",
    `Cannot read ${displayBytes(path)} in ${tree}: the directory was renamed by reference (overlayfs redirect_dir)`,
    { hint: "Mount the container's root file system with redirect_dir=off, as podman and containerd do" },
  );
}

function redirected(path: ByteString, redirect: ByteString): ByteString {
  if (redirect.startsWith("/")) return redirect.slice(1);
  const slash = path.lastIndexOf("/");
  return slash < 0 ? redirect : `${path.slice(0, slash)}/${redirect}`;
}

/** What one layer has at a path; undefined for nothing, also where a parent is missing or no directory. */
function fileIn(layer: Tree, path: ByteString): LowerFile | undefined {
  const slash = path.lastIndexOf("/");
  let parent: number;
  try {
    parent = path === "" || slash < 0 ? layer.fd : openDirectoryBeneath(layer.fd, path.slice(0, slash));
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "ELOOP"].includes(errnoOf(error) ?? "")) return undefined;
    throw error;
  }
  try {
    const name = path.slice(slash + 1);
    const status = path === "" ? statDescriptor(layer.fd) : findAt(parent, name);
    return status === undefined ? undefined : { status, xattrs: readXattrsAt(parent, name) };
  } finally {
    if (parent !== layer.fd) closeFile(parent);
  }
}

function isDeletion({ status, xattrs }: LowerFile): boolean {
  const type = status.mode & S_IFMT;
  if (type === S_IFCHR) return status.rdevMajor === 0 && status.rdevMinor === 0;
  return type === S_IFREG && status.size === 0 && overlayXattr(xattrs, "whiteout") !== undefined;
}
