/** A dm-verity tree behind the data that it protects, in the same file; and what others must know to open it. */
import { alignUp, toHex } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import {
  decodeVeritySuperblock,
  encodeVeritySuperblock,
  planTree,
  VERITY_SUPERBLOCK_SIZE,
  type VerityBlocks,
} from "../formats/verity/index.ts";
import { readAt, writeAt } from "../sys/index.ts";
import { formatUuid } from "./derive.ts";
import { checkVerityTree, makeVerityTree, type VerityTreeOptions } from "./verity-tree.ts";

/** Page size of the machines we know; what veritysetup, containerd and nydus use. */
export const HASH_BLOCK_SIZE = 4096;

export interface VerityParameters {
  readonly dataBlockSize: number;
  readonly hashBlockSize: number;
  readonly salt: Uint8Array;
  /** Of the superblock; undefined for the form without one, which nydus and Kata use. */
  readonly superblockUuid: Uint8Array | undefined;
}

/** Everything that `veritysetup open` or a device-mapper table needs, but the devices. As in the JSON sidecar. */
export interface VerityInfo {
  readonly rootHash: string;
  readonly algorithm: "sha256";
  readonly hashFormat: 1;
  readonly dataBlockSize: number;
  readonly hashBlockSize: number;
  readonly dataBlocks: number;
  /** Byte where the superblock is, or the tree where there is none: `veritysetup --hash-offset`. */
  readonly hashOffset: number;
  /** Byte where the tree is. */
  readonly treeOffset: number;
  /** Hexadecimal, "" for none. */
  readonly salt: string;
  readonly superblock: boolean;
  /** Of the superblock. */
  readonly uuid?: string;
}

interface Running {
  readonly jobs?: VerityTreeOptions["jobs"] | undefined;
  readonly signal?: VerityTreeOptions["signal"] | undefined;
  readonly onHashed?: VerityTreeOptions["onHashed"] | undefined;
  readonly threads?: VerityTreeOptions["threads"] | undefined;
  readonly assembly?: VerityTreeOptions["assembly"] | undefined;
  readonly head?: VerityTreeOptions["head"] | undefined;
}

/** Bytes that a tree with its superblock, and the padding before them, add to `dataSize` bytes of data. */
export function veritySize(dataSize: number, parameters: VerityParameters): number {
  return planTree(blocksOf(dataSize, parameters)).size + treeOffsetOf(dataSize, parameters) - dataSize;
}

/** Writes superblock and tree to `target`, from the first hash block after `hashOffset` on. Nothing is synced. */
export async function writeVerity(
  data: { readonly file: number; readonly size: number },
  target: { readonly file: number; readonly hashOffset: number } | undefined,
  parameters: VerityParameters,
  running: Running = {},
): Promise<VerityInfo> {
  const { salt, superblockUuid, hashBlockSize, dataBlockSize } = parameters;
  const blocks = blocksOf(data.size, parameters);
  const hashOffset = target?.hashOffset ?? 0;
  if (hashOffset % hashBlockSize !== 0) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot write a verity tree at byte ${hashOffset}: it is no multiple of ${hashBlockSize}`,
    );
  }
  const treeOffset = hashOffset + superblockSpace(parameters);
  const place = target && { file: target.file, offset: treeOffset };
  const { rootHash } = await makeVerityTree({ ...running, ...blocks, file: data.file, salt }, place);
  if (target !== undefined && superblockUuid !== undefined) {
    const block = new Uint8Array(superblockSpace(parameters));
    block.set(encodeVeritySuperblock({ ...blocks, uuid: superblockUuid, salt }));
    writeAt(target.file, block, hashOffset);
  }
  return {
    rootHash: toHex(rootHash),
    algorithm: "sha256",
    hashFormat: 1,
    dataBlockSize,
    hashBlockSize,
    dataBlocks: blocks.dataBlocks,
    hashOffset,
    treeOffset,
    salt: toHex(salt),
    superblock: superblockUuid !== undefined,
    ...(superblockUuid === undefined ? {} : { uuid: formatUuid(superblockUuid) }),
  };
}

/** As {@link writeVerity}, behind the data in its own file. */
export function appendVerity(
  data: { readonly file: number; readonly size: number },
  parameters: VerityParameters,
  running: Running = {},
): Promise<VerityInfo> {
  const hashOffset = alignUp(data.size, parameters.hashBlockSize);
  return writeVerity(data, { file: data.file, hashOffset }, parameters, running);
}

/** What must be known to check a file whose tree has no superblock. */
export type BareTree = VerityBlocks & { readonly salt: Uint8Array };

/**
 * Checks data against tree and root hash; parameters come from the superblock at `hashOffset` unless `bare` gives them. DATA_LOSS
 * when anything differs, FormatError when there is no superblock.
 */
export async function verifyImage(
  data: { readonly file: number },
  hash: { readonly file: number; readonly hashOffset: number },
  rootHash: Uint8Array,
  options: Running & { readonly bare?: BareTree | undefined } = {},
): Promise<{ readonly dataBlocks: number; readonly dataBlockSize: number }> {
  const { bare, ...running } = options;
  const parameters = bare ?? readSuperblock(hash);
  const { dataBlocks, dataBlockSize, hashBlockSize, salt } = parameters;
  const space = bare === undefined ? alignUp(VERITY_SUPERBLOCK_SIZE, hashBlockSize) : 0;
  await checkVerityTree(
    { ...running, file: data.file, dataBlocks, dataBlockSize, hashBlockSize, salt, rootHash },
    { file: hash.file, offset: hash.hashOffset + space },
  );
  return { dataBlocks, dataBlockSize };
}

function readSuperblock({ file, hashOffset }: { readonly file: number; readonly hashOffset: number }) {
  const bytes = Buffer.alloc(VERITY_SUPERBLOCK_SIZE);
  const count = readAt(file, bytes, hashOffset);
  return decodeVeritySuperblock(bytes.subarray(0, count));
}

function blocksOf(dataSize: number, { dataBlockSize, hashBlockSize }: VerityParameters): VerityBlocks {
  if (dataSize % dataBlockSize !== 0) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot make a verity tree of ${dataSize} bytes: they are not whole blocks of ${dataBlockSize}`,
      { hint: "The kernel maps whole blocks only: pad the file, or choose smaller blocks" },
    );
  }
  return { dataBlocks: dataSize / dataBlockSize, dataBlockSize, hashBlockSize };
}

function superblockSpace({ superblockUuid, hashBlockSize }: VerityParameters): number {
  return superblockUuid === undefined ? 0 : alignUp(VERITY_SUPERBLOCK_SIZE, hashBlockSize);
}

function treeOffsetOf(dataSize: number, parameters: VerityParameters): number {
  return alignUp(dataSize, parameters.hashBlockSize) + superblockSpace(parameters);
}
