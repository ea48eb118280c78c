/**
 * Kata Containers: how a disk is handed to the runtime, as text of a mount option. The structure is KataVirtualVolume of
 * nydus-snapshotter (snapshot/mount_option.go) and of the Kata runtime and agent.
 */
import { ShaleError } from "../errors/index.ts";
import type { Sidecar } from "./sidecar.ts";

export const KATA_VOLUME_OPTION = "io.katacontainers.volume";

export type KataVolumeType = "direct_block" | "image_raw_block" | "layer_raw_block";

/** Names and order of fields are those of the Go structure. */
export interface KataVolume {
  readonly volume_type: KataVolumeType;
  /** Path of the disk on the host. */
  readonly source: string;
  readonly fs_type: "erofs";
  readonly options: readonly string[];
  readonly direct_volume?: { readonly metadata: Readonly<Record<string, string>> };
  readonly dm_verity?: {
    readonly hashtype: "sha256";
    readonly hash: string;
    readonly blocknum: number;
    readonly blocksize: number;
    readonly hashsize: number;
    readonly offset: number;
  };
}

/**
 * The volume of an exported disk; image_raw_block or layer_raw_block, by what the disk is of, unless `type` says otherwise.
 * INVALID_ARGUMENT for a type that contradicts the disk, and for a tree with salt or superblock: the agent knows neither.
 */
export function kataVolume(path: string, sidecar: Sidecar, type?: KataVolumeType): KataVolume {
  const refuse = (problem: string, hint?: string) =>
    new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot describe ${path} as a Kata volume: ${problem}`,
      hint === undefined ? {} : { hint },
    );
  const own = sidecar.layer === undefined ? "image_raw_block" : "layer_raw_block";
  const volumeType = type ?? own;
  if (volumeType !== "direct_block" && volumeType !== own) throw refuse(`it is an ${own}, not a ${volumeType}`);
  const { verity } = sidecar;
  if (verity !== undefined && (verity.salt !== "" || verity.superblock)) {
    throw refuse("its verity tree has a salt or a superblock", "Export it with --no-superblock and without --salt");
  }
  if (volumeType === "direct_block" && verity !== undefined) {
    throw refuse("a direct_block has no dm-verity", "Use image_raw_block, or export without --verity");
  }
  return {
    volume_type: volumeType,
    source: path,
    fs_type: "erofs",
    options: ["ro"],
    ...(volumeType === "direct_block" ? { direct_volume: { metadata: {} } } : {}),
    ...(verity === undefined
      ? {}
      : {
          dm_verity: {
            hashtype: verity.algorithm,
            hash: verity.rootHash,
            blocknum: verity.dataBlocks,
            blocksize: verity.dataBlockSize,
            hashsize: verity.hashBlockSize,
            offset: verity.treeOffset,
          },
        }),
  };
}

/** "io.katacontainers.volume=" and the JSON in base64. */
export function encodeKataOption(volume: KataVolume): string {
  return `${KATA_VOLUME_OPTION}=${Buffer.from(JSON.stringify(volume)).toString("base64")}`;
}
