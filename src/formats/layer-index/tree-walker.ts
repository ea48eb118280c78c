/** Paths in a layer index: cleaned by text, then walked through the symlinks of the tree as a chroot would. */
import type { ByteString } from "../../bytes/index.ts";
import type { ErrorCode, FormatError } from "../../errors/index.ts";
import { FileType, type LayerIndex, NAME_MAX, NONE, ROOT } from "./index.ts";
import { isWhiteout } from "./overlay.ts";

/** Makes the error for a path; the maker knows whose path it is. */
export type PathError = (problem: string, code?: ErrorCode) => FormatError;

/** Makes the missing directory `name` in `parent`, in place of the whiteout `replaced` if that is not NONE. */
export type AddDirectory = (parent: number, name: ByteString, replaced: number) => number;

/** Linux follows 40 symlinks (linux/namei.h MAXSYMLINKS). */
const MAX_SYMLINKS = 40;
/** Components that the targets of all those symlinks may add: bounds the work for one short path. */
const MAX_SYMLINK_COMPONENTS = 256;

/** Components without "", "." and ".."; undefined when a ".." would leave the root. */
export function cleanPath(path: ByteString): ByteString[] | undefined {
  const components: ByteString[] = [];
  for (const component of path.split("/")) {
    if (component === "" || component === ".") continue;
    if (component !== "..") components.push(component);
    else if (components.pop() === undefined) return undefined;
  }
  return components;
}

export class TreeWalker {
  readonly #index: LayerIndex;
  readonly #addDirectory: AddDirectory;

  constructor(index: LayerIndex, addDirectory: AddDirectory) {
    this.#index = index;
    this.#addDirectory = addDirectory;
  }

  /** The directory at the end of a clean path; what is missing is made. Throws `fail` when a file is in the way. */
  ensureDirectory(components: readonly ByteString[], fail: PathError): number {
    return this.#walk(components, true, fail);
  }

  /** The directory at the end of a clean path; NONE when it is missing or something else. */
  findDirectory(components: readonly ByteString[], fail: PathError): number {
    return this.#walk(components, false, fail);
  }

  #walk(components: readonly ByteString[], create: boolean, fail: PathError): number {
    const index = this.#index;
    const pending = components.toReversed();
    /** The directories from the root to the current one, for ".." in symlink targets. */
    const trail = [ROOT];
    let symlinks = 0;
    let added = 0;
    for (let name = pending.pop(); name !== undefined; name = pending.pop()) {
      if (name === "..") {
        if (trail.length > 1) trail.pop();
        continue;
      }
      const directory = trail.at(-1)!;
      const inode = index.findInode(directory, name);
      const type = inode === NONE ? 0 : index.type(inode);
      if (type === FileType.DIRECTORY) {
        trail.push(inode);
      } else if (type === FileType.SYMLINK) {
        const target = index.symlinkTarget(inode);
        const parts = target.split("/").filter((part) => part !== "" && part !== ".");
        added += parts.length;
        if (++symlinks > MAX_SYMLINKS || added > MAX_SYMLINK_COMPONENTS) {
          throw fail("leads through too many symlinks", "RESOURCE_EXHAUSTED");
        }
        if (target.startsWith("/")) trail.length = 1;
        pending.push(...parts.reverse());
      } else if (inode !== NONE && !isWhiteout(index, inode)) {
        if (!create) return NONE;
        throw fail("leads through an entry that is not a directory");
      } else {
        if (!create) return NONE;
        if (name.length > NAME_MAX) throw fail(`has a component of more than ${NAME_MAX} bytes`);
        trail.push(this.#addDirectory(directory, name, inode));
      }
    }
    return trail.at(-1)!;
  }
}
