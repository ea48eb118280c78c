/** Extended attributes by koffi: Node has no calls for them. Rules as for `libc.ts`. */
import { call, cString, type Path } from "./libc-call.ts";

/** Largest value the kernel stores, linux/limits.h XATTR_SIZE_MAX; also the limit of a list of names. */
export const XATTR_SIZE_MAX = 65536;

/** Filled by the two calls below and copied from at once; 64 KiB anew for each file of a tree kept the garbage collector busy. */
let scratch: Buffer | undefined;

/** One value, by path without following a symlink, or by fd. ENODATA when the file has no such attribute. */
export function getXattr(file: Path | number, name: Path): Buffer {
  scratch ??= Buffer.allocUnsafeSlow(XATTR_SIZE_MAX);
  const value = scratch;
  const key = cString(name, "getxattr");
  const length =
    typeof file === "number"
      ? call(
          "int64_t fgetxattr(int, const void *, void *, size_t)",
          "fgetxattr",
          undefined,
          file,
          key,
          value,
          value.length,
        )
      : call(
          "int64_t lgetxattr(const void *, const void *, void *, size_t)",
          "lgetxattr",
          file,
          cString(file, "lgetxattr"),
          key,
          value,
          value.length,
        );
  return Buffer.from(value.subarray(0, length)); // a copy of the right size: 64 KiB would stay alive otherwise
}

/**
 * Creates or replaces one value, by path without following a symlink unless told to. EPERM or ENOTSUP for a namespace that
 * this user or file system does not have.
 */
export function setXattr(
  file: Path | number,
  name: Path,
  value: Uint8Array,
  { follow = false }: { readonly follow?: boolean } = {},
): void {
  const key = cString(name, "setxattr");
  if (typeof file === "number") {
    call(
      "int fsetxattr(int, const void *, const void *, size_t, int)",
      "fsetxattr",
      undefined,
      file,
      key,
      value,
      value.length,
      0,
    );
    return;
  }
  const syscall = follow ? "setxattr" : "lsetxattr";
  call(
    `int ${syscall}(const void *, const void *, const void *, size_t, int)`,
    syscall,
    file,
    cString(file, syscall),
    key,
    value,
    value.length,
    0,
  );
}

/** Names of all attributes that this user may see, one byte a character. */
export function listXattrs(file: Path | number): string[] {
  scratch ??= Buffer.allocUnsafeSlow(XATTR_SIZE_MAX);
  const names = scratch;
  const length =
    typeof file === "number"
      ? call("int64_t flistxattr(int, void *, size_t)", "flistxattr", undefined, file, names, names.length)
      : call(
          "int64_t llistxattr(const void *, void *, size_t)",
          "llistxattr",
          file,
          cString(file, "llistxattr"),
          names,
          names.length,
        );
  return names.toString("latin1", 0, length).split("\0").slice(0, -1);
}
