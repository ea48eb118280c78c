/** Hard links that come before their targets, kept as placeholder inodes until the layer is complete. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import type { FormatError } from "../../errors/index.ts";
import { type TarEntry, tarError } from "../tar/index.ts";
import { type LayerIndex, NONE } from "./index.ts";
import type { PathError } from "./tree-walker.ts";

interface ForwardLink {
  readonly dirent: number;
  readonly placeholder: number;
  readonly path: ByteString;
  readonly target: ByteString;
  readonly offset: number;
}

/** The inode that a path names now, its last component not followed; NONE when there is none. */
export type FindTarget = (target: ByteString, fail: PathError) => number;

export class HardLinks {
  readonly #index: LayerIndex;
  readonly #byteLimit: number;
  readonly #findTarget: FindTarget;
  readonly #forward = new Map<number, ForwardLink>();
  #bytes = 0;

  constructor(index: LayerIndex, byteLimit: number, findTarget: FindTarget) {
    this.#index = index;
    this.#byteLimit = byteLimit;
    this.#findTarget = findTarget;
  }

  /** The inode to link to; NONE when it is not there yet. */
  find(target: ByteString, fail: PathError): number {
    const inode = this.#findTarget(target, fail);
    return this.#forward.has(inode) ? NONE : inode;
  }

  /** Remembers that `dirent` has to name the target of `entry` in the end. */
  defer(dirent: number, placeholder: number, entry: TarEntry): void {
    const { path, linkTarget: target, headerOffset: offset } = entry;
    this.#bytes += path.length + target.length;
    const link = { dirent, placeholder, path, target, offset };
    if (this.#bytes > this.#byteLimit) {
      throw linkError(link, `comes before its target, as others do: more than ${this.#byteLimit} bytes of paths`, true);
    }
    this.#forward.set(placeholder, link);
  }

  /** Gives every forward link its inode. FormatError for the first that has none. */
  resolve(): void {
    for (const link of this.#forward.values()) {
      if (this.#isReplaced(link)) continue;
      const chain = new Set([link]);
      let inode = this.#targetOf(link);
      // a link to a link: follow, and settle all of them at once
      for (let next = this.#forward.get(inode); next !== undefined; next = this.#forward.get(inode)) {
        if (chain.has(next)) throw linkError(link, "leads back to itself");
        chain.add(next);
        inode = this.#targetOf(next);
      }
      for (const one of chain) this.#index.retarget(one.dirent, inode);
    }
    this.#forward.clear();
  }

  /** A later entry took the name. */
  #isReplaced(link: ForwardLink): boolean {
    return this.#index.direntInode(link.dirent) !== link.placeholder;
  }

  #targetOf(link: ForwardLink): number {
    const inode = this.#findTarget(link.target, (problem) => linkError(link, problem));
    // Lower layers do not count: the tar of a layer is complete in itself, and containerd fails here too.
    if (inode === NONE) throw linkError(link, `"${displayBytes(link.target.slice(0, 300))}" is not in this layer`);
    if (this.#index.isDirectory(inode)) throw linkError(link, "is a directory");
    return inode;
  }
}

function linkError(link: ForwardLink, problem: string, limit = false): FormatError {
  return tarError("link name", problem, link.offset, {
    path: link.path,
    code: limit ? "RESOURCE_EXHAUSTED" : undefined,
  });
}
