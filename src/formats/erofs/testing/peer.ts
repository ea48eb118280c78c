/** Images that we did not write: by mkfs.erofs from a directory, and by hand where no tool at hand makes such ones. */
import { spawnSync } from "node:child_process";
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setXattr } from "../../../sys/libc.ts";
import { FileType } from "../../layer-index/index.ts";
import {
  DIRENT,
  direntType,
  FeatureCompat,
  FeatureIncompat,
  INODE_COMPACT,
  Layout,
  MAGIC,
  SUPERBLOCK,
  SUPERBLOCK_OFFSET,
  superblockChecksum,
} from "../format.ts";
import { canMount, type KernelImage } from "./kernel.ts";
import { noise } from "./samples.ts";

/** Runs mkfs.erofs over a small directory; with `blob`, chunks go to an extra device. */
export function mkfsImage(options: readonly string[], blob = false): KernelImage {
  const top = mkdtempSync(join(tmpdir(), "em-"));
  try {
    const source = join(top, "tree");
    fillDirectory(source);
    const device = blob ? [`--blobdev=${join(top, "blob")}`] : [];
    const words = [...options, ...device, "-U00112233-4455-6677-8899-aabbccddeeff", join(top, "image"), source];
    const run = spawnSync("mkfs.erofs", words, { encoding: "utf8" });
    if (run.status !== 0) throw new Error(`mkfs.erofs ended with ${run.status ?? run.error}: ${run.stderr}`);
    const devices = blob ? [{ tag: "", bytes: padded(readFileSync(join(top, "blob"))) }] : [];
    return { bytes: readFileSync(join(top, "image")), devices };
  } finally {
    rmSync(top, { recursive: true, force: true });
  }
}

function fillDirectory(top: string): void {
  mkdirSync(join(top, "d", "e"), { recursive: true });
  for (const size of [0, 1, 100, 4095, 4096, 4097, 50_000]) writeFileSync(join(top, `f${size}`), noise(size, size + 1));
  writeFileSync(join(top, "zeros"), new Uint8Array(20_000));
  writeFileSync(join(top, "sparse"), noise(4096, 5));
  truncateSync(join(top, "sparse"), 300_000);
  writeFileSync(join(top, "compressible"), "shale ".repeat(20_000));
  symlinkSync("../f100", join(top, "d", "link"));
  for (let i = 0; i < 400; i++) writeFileSync(join(top, "d", "e", `name-${i}`), `${i}`);
  for (let i = 0; i < 5; i++) setXattr(join(top, "d", "e", `name-${i}`), "user.same", Buffer.from("shared ".repeat(8)));
  setXattr(join(top, "f1"), "user.own", Buffer.from([0, 1, 255]));
  if (canMount) setXattr(join(top, "f4096"), "trusted.own", Buffer.from("t")); // root's only
  utimesSync(join(top, "f100"), 1_500_000_000, 1_234_567_890.25);
}

function padded(bytes: Uint8Array): Uint8Array {
  const whole = new Uint8Array(Math.ceil(bytes.length / 4096) * 4096);
  whole.set(bytes);
  return whole;
}

/**
 * A root directory with one file "f" of two blocks, compact inodes and 4-byte chunk entries, in an image of any block
 * size; with `wide`, with the fields of the 48BIT feature.
 */
export function compactImage(blockBits: number, wide: boolean): KernelImage & { readonly content: Uint8Array } {
  const blockSize = 2 ** blockBits;
  const metaBlock = Math.ceil(2048 / blockSize);
  const dataBlock = metaBlock + 1;
  const content = noise(blockSize + 100, 3);
  const bytes = new Uint8Array((dataBlock + 2) * blockSize);
  const root = metaBlock * blockSize;
  const [rootNid, fileNid] = [0, 4];

  const common = { uid: 1, gid: 2, ino: 1, mtime: wide ? 1000 : 0 };
  const names = [".", "..", "f"];
  INODE_COMPACT.write(bytes, root, {
    ...common,
    format: Layout.FLAT_INLINE << 1,
    mode: FileType.DIRECTORY | 0o755,
    linksOrBlockHigh: 2,
    size: names.length * DIRENT.size + names.join("").length,
    union: 0xffffffff,
  });
  let nameOffset = names.length * DIRENT.size;
  names.forEach((name, i) => {
    const isFile = name === "f";
    DIRENT.write(bytes, root + INODE_COMPACT.size + i * DIRENT.size, {
      nid: BigInt(isFile ? fileNid : rootNid),
      nameOffset,
      type: direntType(isFile ? FileType.REGULAR : FileType.DIRECTORY),
    });
    bytes.set(Buffer.from(name), root + INODE_COMPACT.size + nameOffset);
    nameOffset += name.length;
  });
  const file = root + fileNid * 32;
  INODE_COMPACT.write(bytes, file, {
    ...common,
    format: Layout.CHUNK_BASED << 1,
    mode: FileType.REGULAR | 0o644,
    linksOrBlockHigh: 1,
    size: content.length,
    union: 0, // chunks of one block, entries of 4 bytes
  });
  const chunks = new DataView(bytes.buffer, file + INODE_COMPACT.size);
  chunks.setUint32(0, dataBlock + 1, true); // the other way round
  chunks.setUint32(4, dataBlock, true);
  bytes.set(content.subarray(0, blockSize), (dataBlock + 1) * blockSize);
  bytes.set(content.subarray(blockSize), dataBlock * blockSize);
  SUPERBLOCK.write(bytes, SUPERBLOCK_OFFSET, {
    magic: MAGIC,
    featureCompat: FeatureCompat.SB_CHECKSUM | FeatureCompat.MTIME,
    featureIncompat: FeatureIncompat.CHUNKED_FILE | (wide ? FeatureIncompat.BITS_48 : 0),
    blockBits,
    rootNid: 0,
    inodeCount: 2n,
    epoch: 1_600_000_000n,
    fixedNanoseconds: 5,
    blocks: dataBlock + 2,
    metaBlock,
    rootNid64: 0n,
  });
  sealSuperblock(bytes, blockSize);
  return { bytes, devices: [], content };
}

/** Sets the superblock's checksum after a change of bytes. */
export function sealSuperblock(bytes: Uint8Array, blockSize = 4096): void {
  SUPERBLOCK.write(bytes, SUPERBLOCK_OFFSET, {
    checksum: superblockChecksum(bytes.subarray(SUPERBLOCK_OFFSET), blockSize),
  });
}
