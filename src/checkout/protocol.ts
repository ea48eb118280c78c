/** What travels between the thread that runs a checkout and those that write it. Plain data, shared counters, descriptors. */
import type { ByteString } from "../bytes/index.ts";
import type { serializeError } from "../store/ingest/serialize-error.ts";
import type { ProcessRights } from "../sys/index.ts";

/** One tree that is written: the merged one, or a layer's. */
export interface TreeFiles {
  /** EROFS image with the metadata. */
  readonly image: string;
  /** In the order of its device table. */
  readonly devices: readonly string[];
  /** Directory of the files that this tree's files share all their blocks with, if they do. */
  readonly clones: string | undefined;
}

export interface CheckoutJob {
  /** Lowest first. With `layers`, those below a tree say what its implied directories look like. */
  readonly trees: readonly TreeFiles[];
  readonly layers: boolean;
  /** Fill `clones` with the content of the trees instead of writing them. */
  readonly cloning: boolean;
  /** Whether blobs, clones and the checkout can share blocks. */
  readonly reflink: boolean;
  /** Descriptor of the directory that is filled. */
  readonly root: number;
  /** Descriptor of the directory for hard links within the checkout, on the same file system. */
  readonly pool: number;
  /** `ROOT/links`, for hard links across checkouts. */
  readonly sources: string | undefined;
  readonly verify: boolean;
  readonly rights: ProcessRights;
  /** A BigInt64Array of {@link CONTROL_SLOTS}. */
  readonly control: SharedArrayBuffer;
}

/** Slots of `control`. */
export const STOP = 0;
/** Threads that have nothing to do: others give away from what they have. */
export const HUNGRY = 1;
export const FILES_DONE = 2;
export const BYTES_DONE = 3;
export const CONTROL_SLOTS = 4;

/** A directory to fill; it exists. */
export interface DirectoryTask {
  readonly tree: number;
  readonly nid: number;
  /** From `root`; "" is `root` itself. */
  readonly path: ByteString;
  /** The same from the tree's own root. */
  readonly inside: ByteString;
}

export type LossKind = "owner" | "set-id bit" | "xattr" | "device" | "symlink";

/** Something that a file should have and has not. */
export interface Loss {
  readonly kind: LossKind;
  /** From the checkout's directory. */
  readonly path: ByteString;
  /** The name of the xattr, the number of the device, ... */
  readonly detail: string;
}

/** What was written. Files with several names count once for each. */
export interface Tally {
  directories: number;
  files: number;
  symlinks: number;
  /** Devices, fifos, sockets, whiteouts. */
  others: number;
  /** Sizes of the files. */
  bytes: number;
  /** Files (and their bytes) by how their content came; `linked` is shared with other checkouts. */
  linked: number;
  linkedBytes: number;
  reflinked: number;
  reflinkedBytes: number;
  copied: number;
  copiedBytes: number;
  /** Made here, and there for later checkouts to share. */
  published: number;
  /** Link sources that had been written to, and were dropped. */
  replaced: number;
  losses: Record<LossKind, number>;
}

export interface ThreadResult {
  readonly tally: Tally;
  /** The first of each kind. */
  readonly losses: readonly Loss[];
  /** Directories whose owner may not enter or change them, which waits until all is in them. */
  readonly closed: readonly { readonly path: ByteString; readonly mode: number }[];
  /** Why content did not come as it was asked to: "hardlink: EXDEV". */
  readonly fallbacks: readonly string[];
}

export type ToThread =
  | { readonly kind: "job"; readonly job: CheckoutJob }
  | { readonly kind: "tasks"; readonly tasks: readonly DirectoryTask[] }
  /** Answered with "result"; the job is over. */
  | { readonly kind: "finish" }
  | { readonly kind: "end" };

export type FromThread =
  | { readonly kind: "ready" }
  /** Given away, because others have nothing to do. */
  | { readonly kind: "shared"; readonly tasks: readonly DirectoryTask[] }
  /** All that it had is done. */
  | { readonly kind: "idle" }
  | { readonly kind: "failed"; readonly error: ReturnType<typeof serializeError> }
  | { readonly kind: "result"; readonly result: ThreadResult };
