/** Opening the store for a command, and what it reads of one image. Loaded by the commands that need it only. */
import { errnoOf, ShaleError } from "../../errors/index.ts";
import type { ManifestRecord, Store, StoreOperation } from "../../store/index.ts";
import type { Context } from "../command.ts";

/** The store at --root. NOT_FOUND with a hint when there is none: only what brings images makes one. */
export async function openStore(
  { root }: Pick<Context, "root">,
  options: { readonly create?: boolean } = {},
): Promise<Store> {
  const { Store } = await import("../../store/index.ts");
  try {
    return Store.open(root, options);
  } catch (error) {
    const state = REFUSED.get(errnoOf(error) ?? "");
    if (state === undefined) throw error;
    throw new ShaleError("PERMISSION_DENIED", `Cannot open the store at ${root}: ${state}`, {
      cause: error,
      hint: "Run as the store's owner, or choose another directory with --root",
    });
  }
}

/** What a directory that isn't ours, or can't be one, answers. */
const REFUSED: ReadonlyMap<string, string> = new Map([
  ["EACCES", "this user may not"],
  ["EPERM", "this user may not"],
  ["EROFS", "its file system is read-only"],
  ["ENOTDIR", "a part of the path is not a directory"],
]);

/** Runs `body` on the files of one image, under a lease. */
export async function withImageTree<T>(
  context: Pick<Context, "root">,
  what: string,
  ref: string,
  platform: string | undefined,
  body: (tree: import("../../images/files.ts").ImageTree, manifest: ManifestRecord) => Promise<T>,
): Promise<T> {
  const { findImage } = await import("../../images/find.ts");
  const { openImageTree } = await import("../../images/files.ts");
  await using store = await openStore(context);
  const { manifest } = findImage(store, ref, platform);
  using operation: StoreOperation = store.begin(`${what} ${ref}`);
  using tree = openImageTree(operation, manifest);
  return await body(tree, manifest);
}
