/**
 * The JSON beside an exported file (its name + ".json"): what is in it and, with dm-verity, everything needed to open it. It is as
 * deterministic as the file; docs/export.md says how to publish and sign it. Nothing in it is trusted: a root hash to verify
 * against comes from the user.
 */
import { hash } from "node:crypto";
import { ShaleError, shownValue } from "../errors/index.ts";
import { findFile, readFile, type StagedFile, stageFile, writeFileDurably } from "../sys/index.ts";
import type { ExportSource } from "./source.ts";
import type { VerityInfo } from "./verity-image.ts";

/** Far more than any sidecar with thousands of layers. */
const MAX_SIZE = 4 * 1024 * 1024;
const PERMISSIONS = 0o644;

export interface Sidecar {
  readonly version: 1;
  /** "disk", "tarfs" and the like. */
  readonly format: string;
  readonly image: {
    readonly manifest: string;
    readonly config: string;
    readonly platform: string;
    readonly chainId: string | undefined;
    /** Lowest first. */
    readonly layers: readonly { readonly digest: string; readonly diffId: string }[];
  };
  /** 0-based; absent for all layers merged. */
  readonly layer?: number;
  readonly fileSystem: {
    readonly type: "erofs" | "ext4";
    readonly blockSize: number;
    readonly uuid: string;
    readonly size: number;
  };
  readonly verity?: VerityInfo;
  /** Bytes of the file, the tree included. */
  readonly size: number;
  /** Equal in two sidecars exactly when the same export was asked for. */
  readonly request: string;
}

export function sidecarPath(target: string): string {
  return `${target}.json`;
}

/** Identifies what is asked for: two exports with the same give the same bytes. `options` must be all that matters. */
export function requestOf(source: ExportSource, options: Readonly<Record<string, unknown>>): string {
  const { manifest, layer } = source;
  return hash("sha256", JSON.stringify({ manifest: manifest.digest, layer, ...options }), "hex");
}

export function imageOf({ manifest }: ExportSource): Sidecar["image"] {
  const { digest, config, platform, chainId, layers } = manifest;
  return {
    manifest: digest,
    config,
    platform,
    chainId,
    layers: layers.map((layer) => ({ digest: layer.digest, diffId: layer.diffId })),
  };
}

export function encodeSidecar(sidecar: Sidecar): Uint8Array {
  return Buffer.from(`${JSON.stringify(sidecar, null, 2)}\n`);
}

export function writeSidecar(target: string, sidecar: Sidecar): void {
  writeFileDurably(sidecarPath(target), encodeSidecar(sidecar), PERMISSIONS);
}

/** As {@link writeSidecar}, in two steps: after the first one a full disk is no matter any more. */
export function stageSidecar(target: string, sidecar: Sidecar): StagedFile {
  return stageFile(sidecarPath(target), encodeSidecar(sidecar), PERMISSIONS);
}

/** Undefined when there is none. INVALID_ARGUMENT when the file is no sidecar of ours. */
export function readSidecar(target: string): Sidecar | undefined {
  const path = sidecarPath(target);
  if (findFile(path) === undefined) return undefined;
  const refuse = (problem: string, cause?: unknown) =>
    new ShaleError("INVALID_ARGUMENT", `Cannot read ${path}: ${problem}`, cause === undefined ? {} : { cause });
  let value: unknown;
  try {
    value = JSON.parse(readFile(path, MAX_SIZE).toString("utf8"));
  } catch (error) {
    if (error instanceof SyntaxError) throw refuse("it is not JSON", error);
    throw error;
  }
  if (typeof value !== "object" || value === null || !("version" in value) || !("request" in value)) {
    throw refuse("it does not describe an export");
  }
  if (value.version !== 1) throw refuse(`its version is ${shownValue(value.version)}, known is 1`);
  checkImage("image" in value ? value.image : undefined, refuse);
  checkVerity("verity" in value ? value.verity : undefined, refuse);
  return value as Sidecar;
}

/** The sidecar of an exported file; undefined unless file and sidecar are there, belong together and are whole. */
export function findExported(path: string): Sidecar | undefined {
  const file = findFile(path);
  if (file === undefined) return undefined;
  try {
    const sidecar = readSidecar(path);
    return sidecar?.size === file.size ? sidecar : undefined;
  } catch (error) {
    if (ShaleError.is(error, "INVALID_ARGUMENT") || ShaleError.is(error, "RESOURCE_EXHAUSTED")) return undefined;
    throw error;
  }
}

/** The part that the cache of exports goes by. */
function checkImage(image: unknown, refuse: (problem: string) => ShaleError): void {
  if (typeof image !== "object" || image === null) throw refuse("it names no image");
  const { manifest, layers } = image as Readonly<Record<string, unknown>>;
  if (typeof manifest !== "string") throw refuse("image.manifest is no digest");
  if (!Array.isArray(layers)) throw refuse("image.layers is no list");
  for (const layer of layers as readonly unknown[]) {
    const diffId = typeof layer === "object" && layer !== null && "diffId" in layer ? layer.diffId : undefined;
    if (typeof diffId !== "string" || !/^sha256:[0-9a-f]{64}$/.test(diffId)) throw refuse("a layer has no diffId");
  }
}

/** The part that `verify` computes with. */
function checkVerity(verity: unknown, refuse: (problem: string) => ShaleError): void {
  if (verity === undefined) return;
  if (typeof verity !== "object" || verity === null) throw refuse("verity is no object");
  const fields = verity as Readonly<Record<string, unknown>>;
  for (const name of ["dataBlocks", "dataBlockSize", "hashBlockSize", "hashOffset", "treeOffset"]) {
    if (!Number.isSafeInteger(fields[name]) || (fields[name] as number) < 0) throw refuse(`verity.${name} is no size`);
  }
  if (typeof fields.salt !== "string" || !/^(?:[0-9a-f]{2}){0,256}$/.test(fields.salt))
    throw refuse("verity.salt is none");
  if (typeof fields.rootHash !== "string" || !/^[0-9a-f]{64}$/.test(fields.rootHash))
    throw refuse("verity.rootHash is none");
  if (typeof fields.superblock !== "boolean") throw refuse("verity.superblock is no truth value");
}
