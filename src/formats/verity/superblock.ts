import { bytes, safeNumber, struct, text, u16le, u32le, u64le } from "../../bytes/index.ts";
import { FormatError, ShaleError } from "../../errors/index.ts";
import { checkBlockSize, MAX_SALT_SIZE, type VerityBlocks } from "./shape.ts";

const FORMAT = "verity superblock";

/** Of the structure; the tree begins at the next hash block. */
export const VERITY_SUPERBLOCK_SIZE = 512;

/** struct verity_sb of cryptsetup, lib/verity/verity.c; containerd and systemd write the same. Little-endian. */
const SUPERBLOCK = struct(FORMAT, VERITY_SUPERBLOCK_SIZE, {
  signature: text(0, 8),
  version: u32le(8),
  hashType: u32le(12), // 1: the salt is hashed before the block
  uuid: bytes(16, 16),
  algorithm: text(32, 32),
  dataBlockSize: u32le(64),
  hashBlockSize: u32le(68),
  dataBlocks: u64le(72),
  saltSize: u16le(80),
  salt: bytes(88, MAX_SALT_SIZE),
});
const SIGNATURE = "verity";
const VERSION = 1;
const HASH_TYPE = 1;
const ALGORITHM = "sha256";

export interface VeritySuperblock extends VerityBlocks {
  /** 16 bytes. */
  readonly uuid: Uint8Array;
  readonly salt: Uint8Array;
}

/** 512 bytes; zeros follow up to the next hash block, where the tree begins. */
export function encodeVeritySuperblock(superblock: VeritySuperblock): Uint8Array {
  const { uuid, salt, dataBlocks, dataBlockSize, hashBlockSize } = superblock;
  if (uuid.length !== 16) throw new RangeError(`a uuid of ${uuid.length} bytes`);
  const result = new Uint8Array(SUPERBLOCK.size);
  SUPERBLOCK.write(result, 0, {
    signature: SIGNATURE,
    version: VERSION,
    hashType: HASH_TYPE,
    uuid,
    algorithm: ALGORITHM,
    dataBlockSize,
    hashBlockSize,
    dataBlocks: BigInt(dataBlocks),
    saltSize: salt.length,
    salt,
  });
  return result;
}

/** FormatError when there is none; UNIMPLEMENTED for a hash type or algorithm that we don't write. */
export function decodeVeritySuperblock(data: Uint8Array): VeritySuperblock {
  const sb = SUPERBLOCK.read(data);
  if (sb.signature !== SIGNATURE) throw new FormatError(FORMAT, "signature", "is not there", { offset: 0 });
  if (sb.version !== VERSION) {
    throw new FormatError(FORMAT, "version", `must be ${VERSION}: current value is ${sb.version}`, { offset: 8 });
  }
  if (sb.hashType !== HASH_TYPE || sb.algorithm.toLowerCase() !== ALGORITHM) {
    const found = `${JSON.stringify(sb.algorithm)} in format ${sb.hashType}`;
    throw new ShaleError("UNIMPLEMENTED", `Cannot read verity superblock: its hashes are ${found}`);
  }
  if (sb.saltSize > MAX_SALT_SIZE) {
    throw new FormatError(FORMAT, "salt size", `${sb.saltSize} is over ${MAX_SALT_SIZE}`, { offset: 80 });
  }
  checkBlockSize("data block size", sb.dataBlockSize);
  checkBlockSize("hash block size", sb.hashBlockSize);
  return {
    uuid: sb.uuid,
    salt: sb.salt.subarray(0, sb.saltSize),
    dataBlockSize: sb.dataBlockSize,
    hashBlockSize: sb.hashBlockSize,
    dataBlocks: safeNumber(sb.dataBlocks, FORMAT, "data blocks", 72),
  };
}
