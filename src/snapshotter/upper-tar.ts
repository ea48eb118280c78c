/**
 * The tar of what an overlay's upper directory adds to the layers below, as the OCI image specification writes a layer:
 * whiteouts as ".wh." files, opaque directories with ".wh..wh..opq". Reading only.
 */
import type { ByteString } from "../bytes/index.ts";
import { displayBytes } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { FileType } from "../formats/layer-index/index.ts";
import { OPAQUE_XATTR } from "../formats/layer-index/overlay.ts";
import { encodeTarHeader, TAR_END, type TarEntryType, type TarHeader, tarPadding } from "../formats/tar/index.ts";
import { type WalkedFile, walkFiles } from "../sys/index.ts";

const WHITEOUT = ".wh.";
const OPAQUE = ".wh..wh..opq";
const OVERLAY = "trusted.overlay.";
/** Of an overlay within the container: the kernel escapes it, mounting takes one level off. */
const ESCAPED = "trusted.overlay.overlay.";
/** A directory that was renamed, or a file without its data: both refer to the layers below by place. */
const NOT_ON_ITS_OWN = ["trusted.overlay.redirect", "trusted.overlay.metacopy"];
const NANOSECONDS = 1_000_000_000n;

const TYPES: ReadonlyMap<number, TarEntryType> = new Map([
  [FileType.REGULAR, "file"],
  [FileType.DIRECTORY, "directory"],
  [FileType.SYMLINK, "symlink"],
  [FileType.CHARACTER, "character"],
  [FileType.BLOCK, "block"],
  [FileType.FIFO, "fifo"],
]);

/**
 * Pieces of the tar; a piece is good until the next one is asked for. FAILED_PRECONDITION for what a layer can't say: a
 * socket, a name that begins with ".wh.", a renamed directory; and for a file that changes meanwhile.
 */
export function* upperTar(directory: string): Generator<Uint8Array> {
  const names = new Map<string, ByteString>();
  for (const file of walkFiles(directory)) yield* entry(file, names);
  yield TAR_END;
}

function* entry(file: WalkedFile, names: Map<string, ByteString>): Generator<Uint8Array> {
  const path = file.path === "." ? "./" : `./${file.path}`;
  const slash = path.lastIndexOf("/") + 1;
  const name = path.slice(slash);
  if (name.startsWith(WHITEOUT)) throw cannot(file, "has a name that means a removal in a layer");
  const kind = file.mode & FileType.MASK;
  if (kind === FileType.CHARACTER && file.rdevMajor === 0 && file.rdevMinor === 0) {
    yield encodeTarHeader({ ...marker(`${path.slice(0, slash)}${WHITEOUT}${name}`), ...times(file) });
    return;
  }
  const type = TYPES.get(kind);
  if (type === undefined) throw cannot(file, "is a socket, which a layer can't hold");
  const reference = file.xattrs.find((xattr) => NOT_ON_ITS_OWN.includes(xattr.name));
  if (reference !== undefined) throw cannot(file, `has ${reference.name}, which refers to layers below`);

  const first = names.get(file.identity);
  if (first !== undefined) {
    yield encodeTarHeader({ ...headerOf(file, path, "hardlink"), linkTarget: first, xattrs: [] });
    return;
  }
  if (type !== "directory" && file.links > 1) names.set(file.identity, path);
  yield encodeTarHeader(headerOf(file, type === "directory" && !path.endsWith("/") ? `${path}/` : path, type));
  if (type === "directory" && file.xattrs.some((xattr) => xattr.name === OPAQUE_XATTR && xattr.value === "y")) {
    yield encodeTarHeader({ ...marker(`${path}${path.endsWith("/") ? "" : "/"}${OPAQUE}`), ...times(file) });
  }
  if (type !== "file") return;
  let size = 0;
  for (const piece of file.content()) {
    size += piece.length;
    if (size > file.size) break;
    yield piece;
  }
  if (size !== file.size) throw cannot(file, "is being written to");
  if (size > 0) yield tarPadding(size);
}

function headerOf(file: WalkedFile, path: ByteString, type: TarEntryType): TarHeader {
  return {
    type,
    path,
    linkTarget: type === "symlink" ? file.target : "",
    mode: file.mode & 0o7777,
    uid: file.uid,
    gid: file.gid,
    size: type === "file" ? file.size : 0,
    ...times(file),
    rdevMajor: file.rdevMajor,
    rdevMinor: file.rdevMinor,
    xattrs: file.xattrs.flatMap(({ name, value }) => {
      if (name.startsWith(ESCAPED)) return [{ name: `${OVERLAY}${name.slice(ESCAPED.length)}`, value }];
      return name.startsWith(OVERLAY) ? [] : [{ name, value }];
    }),
  };
}

function marker(path: ByteString): TarHeader {
  return {
    type: "file",
    path,
    linkTarget: "",
    mode: 0,
    uid: 0,
    gid: 0,
    size: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    rdevMajor: 0,
    rdevMinor: 0,
    xattrs: [],
  };
}

/** Rounded down, also before 1970. */
function times({ mtimeNs }: WalkedFile): Pick<TarHeader, "mtimeSeconds" | "mtimeNanoseconds"> {
  const nanoseconds = ((mtimeNs % NANOSECONDS) + NANOSECONDS) % NANOSECONDS;
  return { mtimeSeconds: Number((mtimeNs - nanoseconds) / NANOSECONDS), mtimeNanoseconds: Number(nanoseconds) };
}

function cannot(file: WalkedFile, why: string): ShaleError {
  return new ShaleError("FAILED_PRECONDITION", `Cannot make a layer: ${displayBytes(file.path)} ${why}`);
}
