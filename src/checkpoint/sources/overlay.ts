/**
 * What overlayfs keeps in an upper directory beside files: Documentation/filesystems/overlayfs.rst and fs/overlayfs/ of
 * Linux. Its xattrs are "trusted.overlay." ones, or "user.overlay." ones on a mount with `userxattr`.
 */
import type { ByteString } from "../../bytes/index.ts";
import type { TarHeader } from "../../formats/tar/index.ts";
import type { TreeFile } from "./tree.ts";

type Xattrs = TarHeader["xattrs"];

const NAMESPACES = ["trusted.overlay.", "user.overlay."] as const;
/** A file of the container that has an xattr "trusted.overlay.x" keeps it in the upper directory as this (Linux 6.7). */
const ESCAPE = "overlay.";

/** The value of an xattr of overlayfs's own, by its name without the namespace. */
export function overlayXattr(xattrs: Xattrs, name: string): ByteString | undefined {
  for (const namespace of NAMESPACES) {
    const found = xattrs.find((each) => each.name === `${namespace}${name}`);
    if (found !== undefined) return found.value;
  }
  return undefined;
}

/** The xattrs that the container sees: overlayfs's own are gone, escaped ones have their names back. */
export function visibleXattrs(xattrs: Xattrs): Xattrs {
  if (xattrs.every(({ name }) => NAMESPACES.every((namespace) => !name.startsWith(namespace)))) return xattrs;
  return xattrs.flatMap(({ name, value }) => {
    const namespace = NAMESPACES.find((each) => name.startsWith(each));
    if (namespace === undefined) return [{ name, value }];
    const rest = name.slice(namespace.length);
    return rest.startsWith(ESCAPE) ? [{ name: namespace + rest.slice(ESCAPE.length), value }] : [];
  });
}

/** The name under which an upper directory keeps what the container sees as `name`. */
export function upperXattrName(name: ByteString): ByteString {
  const namespace = NAMESPACES.find((each) => name.startsWith(each));
  return namespace === undefined ? name : `${namespace}${ESCAPE}${name.slice(namespace.length)}`;
}

/** A deletion: the device 0/0, or (a composed lower layer, Linux 6.7) an empty file with a mark. */
export function isWhiteout({ type, status, xattrs }: TreeFile): boolean {
  if (type === "character") return status.rdevMajor === 0 && status.rdevMinor === 0;
  return type === "file" && status.size === 0 && overlayXattr(xattrs, "whiteout") !== undefined;
}

/** Whether a directory hides what the lower layers have in it. "x" says that whiteouts in it are marked files. */
export function isOpaque(xattrs: Xattrs): boolean {
  return overlayXattr(xattrs, "opaque") === "y";
}
