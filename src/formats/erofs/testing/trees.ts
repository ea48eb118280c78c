/** Trees for tests: building an index with content, writing it, and describing it so that three views can be compared. */
import { createHash } from "node:crypto";
import { type ByteString, concatBytes, memorySource } from "../../../bytes/index.ts";
import { Content, FileType, type InodeAttributes, LayerIndex, ROOT } from "../../layer-index/index.ts";
import { type ErofsDevice, type ErofsImage, ErofsReader, type WriteErofsOptions, writeErofs } from "../index.ts";

/** What stat, readlink, read and listxattr tell; the same from an index, a reader and the kernel. */
export interface Described {
  readonly mode: string;
  readonly owner: string;
  readonly mtime: string;
  readonly links: number;
  /** Size of anything but a directory, whose size only the image defines. */
  readonly size: number;
  readonly rdev: string;
  readonly content: string;
  readonly xattrs: readonly string[];
  /** The first path of the same inode. */
  readonly sameAs: ByteString;
}
export type Description = Record<ByteString, Described>;

export const UUID = Uint8Array.from({ length: 16 }, (_, i) => i + 1);

/** Short for long content. */
export function digestOf(content: Uint8Array): string {
  if (content.length <= 32) return Buffer.from(content).toString("latin1");
  return createHash("sha256").update(content).digest("hex");
}

export function describeXattrs(xattrs: readonly { readonly name: ByteString; readonly value: ByteString }[]): string[] {
  return xattrs.map(({ name, value }) => `${name}=${digestOf(Buffer.from(value, "latin1"))}`).sort();
}

const DEFAULTS: InodeAttributes = {
  mode: 0,
  uid: 0,
  gid: 0,
  mtimeSeconds: 1_700_000_000,
  mtimeNanoseconds: 0,
  size: 0,
  rdevMajor: 0,
  rdevMinor: 0,
  xattrs: [],
};

export type Attributes = Partial<InodeAttributes>;

/** An index together with the bytes that its inodes stand for. */
export class TestTree {
  readonly index = new LayerIndex(5);
  readonly devices: { tag: string; bytes: Uint8Array }[] = [];
  readonly #inline = new Map<number, Uint8Array>();

  constructor(root: Attributes = {}) {
    this.index.addInode({ ...DEFAULTS, mode: FileType.DIRECTORY | 0o755, ...root });
  }

  directory(path: ByteString, more: Attributes = {}): number {
    return this.#name(path, this.index.addInode({ ...DEFAULTS, mode: FileType.DIRECTORY | 0o755, ...more }));
  }

  file(path: ByteString, content: Uint8Array | string = "", more: Attributes = {}): number {
    const bytes = typeof content === "string" ? Buffer.from(content, "latin1") : content;
    const attributes = { ...DEFAULTS, mode: FileType.REGULAR | 0o644, ...more, size: bytes.length };
    const inode = this.#name(path, this.index.addInode(attributes));
    if (bytes.length > 0) {
      this.index.setContent(inode, Content.INLINE, 0, 0);
      this.#inline.set(inode, bytes);
    }
    return inode;
  }

  /** A file whose content is on a device, at the next free block of it. */
  deviceFile(path: ByteString, tag: string, content: Uint8Array, more: Attributes = {}): number {
    let device = this.devices.findIndex((one) => one.tag === tag);
    if (device < 0) device = this.devices.push({ tag, bytes: new Uint8Array(0) }) - 1;
    const slot = this.devices[device]!;
    const offset = slot.bytes.length;
    slot.bytes = concatBytes([slot.bytes, content, new Uint8Array((4096 - (content.length % 4096)) % 4096)]);
    const attributes = { ...DEFAULTS, mode: FileType.REGULAR | 0o644, ...more, size: content.length };
    const inode = this.#name(path, this.index.addInode(attributes));
    this.index.setContent(inode, Content.EXTENT, device, offset);
    return inode;
  }

  symlink(path: ByteString, target: ByteString, more: Attributes = {}): number {
    const attributes = { ...DEFAULTS, mode: FileType.SYMLINK | 0o777, ...more, size: target.length };
    return this.#name(path, this.index.addInode(attributes, target));
  }

  special(path: ByteString, mode: number, major = 0, minor = 0, more: Attributes = {}): number {
    const inode = this.index.addInode({ ...DEFAULTS, mode, rdevMajor: major, rdevMinor: minor, ...more });
    return this.#name(path, inode);
  }

  whiteout(path: ByteString): number {
    return this.special(path, FileType.CHARACTER, 0, 0);
  }

  link(path: ByteString, inode: number): number {
    return this.#name(path, inode);
  }

  /** The inode at a path that exists. */
  at(path: ByteString): number {
    return path === ""
      ? ROOT
      : path.split("/").reduce((parent, name) => this.index.findInode(parent, name), ROOT as number);
  }

  content(inode: number): Uint8Array {
    const { index } = this;
    const kind = index.contentKind(inode);
    if (kind === Content.INLINE) return this.#inline.get(inode)!;
    if (kind === Content.EMPTY) return new Uint8Array(0);
    const offset = index.contentOffset(inode);
    return this.devices[index.contentDevice(inode)]!.bytes.subarray(offset, offset + index.size(inode));
  }

  write(keepUnlinked = false): WrittenTree {
    return writeTree(this.index, blocksOf(this.devices), (inode) => this.content(inode), { keepUnlinked });
  }

  /** With blocks of another size; `selfContained` gives image and devices in one. */
  writeAs(blockSize: number, selfContained: boolean): WrittenTree {
    const devices = this.devices.map(({ tag, bytes }) => ({ tag, blocks: bytes.length / blockSize }));
    const { bytes, image } = writeTree(this.index, devices, (inode) => this.content(inode), {
      blockSize,
      selfContained,
    });
    if (!selfContained) return { bytes, image };
    const all = new Uint8Array(image.totalSize);
    all.set(bytes);
    this.devices.forEach((device, i) => {
      all.set(device.bytes, image.deviceOffsets[i]);
    });
    return { bytes: all, image };
  }

  describe(): Description {
    return describeIndex(this.index, (inode) => this.content(inode));
  }

  #name(path: ByteString, inode: number): number {
    const slash = path.lastIndexOf("/");
    this.index.addDirent(this.at(slash < 0 ? "" : path.slice(0, slash)), path.slice(slash + 1), inode);
    return inode;
  }
}

export interface WrittenTree {
  readonly bytes: Uint8Array;
  readonly image: ErofsImage;
}

export function blocksOf(devices: readonly { tag: string; bytes: Uint8Array }[]): ErofsDevice[] {
  return devices.map(({ tag, bytes }) => ({ tag, blocks: bytes.length / 4096 }));
}

export function writeTree(
  index: LayerIndex,
  devices: readonly ErofsDevice[],
  readInline: (inode: number) => Uint8Array,
  more: Partial<WriteErofsOptions> = {},
): WrittenTree {
  const chunks: Uint8Array[] = [];
  const write = (chunk: Uint8Array) => {
    chunks.push(chunk.slice());
  };
  const image = writeErofs(index, { devices, uuid: UUID, readInline, write, ...more });
  return { bytes: concatBytes(chunks), image };
}

/** A reader over an image and blobs in memory. */
export function openTree(bytes: Uint8Array, devices: readonly { tag: string; bytes: Uint8Array }[] = []): ErofsReader {
  return new ErofsReader(memorySource(bytes), (tag) => memorySource(devices.find((one) => one.tag === tag)!.bytes));
}

export function describeIndex(index: LayerIndex, content: (inode: number) => Uint8Array): Description {
  const result: Description = {};
  const first = new Map<number, ByteString>();
  const visit = (inode: number, path: ByteString) => {
    const type = index.type(inode);
    if (!first.has(inode)) first.set(inode, path);
    const bytes =
      type === FileType.SYMLINK
        ? Buffer.from(index.symlinkTarget(inode), "latin1")
        : type === FileType.REGULAR
          ? content(inode)
          : new Uint8Array(0);
    result[path] = {
      mode: index.mode(inode).toString(8),
      owner: `${index.uid(inode)}:${index.gid(inode)}`,
      mtime: String(BigInt(index.mtimeSeconds(inode)) * 1_000_000_000n + BigInt(index.mtimeNanoseconds(inode))),
      links: index.links(inode),
      size: bytes.length,
      rdev: `${index.rdevMajor(inode)}:${index.rdevMinor(inode)}`,
      content: digestOf(bytes),
      xattrs: describeXattrs(index.xattrs(inode)),
      sameAs: first.get(inode)!,
    };
    if (type !== FileType.DIRECTORY) return;
    for (const dirent of index.sortedDirents(inode)) {
      const name = index.direntName(dirent);
      visit(index.direntInode(dirent), path === "" ? name : `${path}/${name}`);
    }
  };
  visit(ROOT, "");
  return result;
}

export function describeReader(reader: ErofsReader): Description {
  const result: Description = {};
  const first = new Map<number, ByteString>();
  for (const { path, inode } of reader.walk()) {
    const type = inode.mode & FileType.MASK;
    if (!first.has(inode.nid)) first.set(inode.nid, path);
    const bytes =
      type === FileType.SYMLINK
        ? Buffer.from(reader.readlink(inode), "latin1")
        : type === FileType.REGULAR
          ? concatBytes([...reader.content(inode), new Uint8Array(0)])
          : new Uint8Array(0);
    result[path] = {
      mode: inode.mode.toString(8),
      owner: `${inode.uid}:${inode.gid}`,
      mtime: String(BigInt(inode.mtimeSeconds) * 1_000_000_000n + BigInt(inode.mtimeNanoseconds)),
      links: inode.links,
      size: bytes.length,
      rdev: `${inode.rdevMajor}:${inode.rdevMinor}`,
      content: digestOf(bytes),
      xattrs: describeXattrs(reader.xattrs(inode)),
      sameAs: first.get(inode.nid)!,
    };
  }
  return result;
}
