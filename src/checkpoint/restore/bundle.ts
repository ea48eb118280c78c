/**
 * The bundle that `runc restore` and `crun restore` take: config.json beside CRIU's images. The configuration is the
 * container's own (spec.dump) with what belongs to the machine it came from put right.
 */
import { join } from "node:path";
import { FormatError } from "../../errors/index.ts";
import { closeFile, createFile, ensureDirectory, findFile, makeDirectory, writeAt } from "../../sys/index.ts";

/** Bytes of a document of an archive that are read into memory: podman's config.dump has some 24 kB. */
export const DOCUMENT_MAX = 16 * 1024 * 1024;

/** What CRI-O writes of bind mounts (bind.mounts), so that missing sources can be made of the right kind. */
export interface BindMount {
  readonly source: string;
  readonly destination: string;
  readonly isDirectory: boolean;
}

export interface BundleOptions {
  /** Where the bundle is being made, and where it will be. */
  readonly staging: string;
  readonly path: string;
  readonly bindMounts: readonly BindMount[];
  /** Destinations in the container whose content was restored elsewhere: volumes, /dev/shm. */
  readonly sources: ReadonlyMap<string, string>;
}

/** Root file system of the container in the bundle: a mount point. */
export const ROOTFS = "rootfs";
/** Stand-ins for sources of bind mounts that this machine lacks. */
const MOUNTS = "mounts";

type Json = Record<string, unknown>;

/**
 * Writes config.json and the mount point. A bind mount whose source is not on this machine gets a stand-in: an empty directory or
 * file, and for the files that engines make (hosts, resolv.conf, hostname) one with a content.
 */
export function writeBundleConfig(specification: Uint8Array, options: BundleOptions): void {
  const spec = parseObject(specification, "spec.dump");
  const { staging, path } = options;
  spec.root = { ...(isObject(spec.root) ? spec.root : {}), path: ROOTFS };
  makeDirectory(join(staging, ROOTFS), 0o755);
  const mounts = Array.isArray(spec.mounts) ? (spec.mounts as readonly unknown[]) : [];
  spec.mounts = mounts.map((mount, index) => {
    if (!isObject(mount) || !isBind(mount)) return mount;
    const { source, destination } = mount;
    if (typeof source !== "string" || typeof destination !== "string") return mount;
    const restored = options.sources.get(destination);
    if (restored !== undefined) return { ...mount, source: restored };
    if (findFile(source) !== undefined) return mount;
    const name = `${index}`;
    ensureDirectory(join(staging, MOUNTS));
    makeStandIn(join(staging, MOUNTS, name), destination, options, spec);
    return { ...mount, source: join(path, MOUNTS, name) };
  });
  const text = Buffer.from(`${JSON.stringify(spec, null, 2)}\n`);
  write(join(staging, "config.json"), text);
}

function makeStandIn(path: string, destination: string, { bindMounts }: BundleOptions, spec: Json): void {
  const known = bindMounts.find((each) => each.destination === destination);
  const hostname = typeof spec.hostname === "string" ? spec.hostname : "localhost";
  const contents: Readonly<Record<string, string>> = {
    "/etc/hosts": `127.0.0.1 localhost\n::1 localhost\n`,
    "/etc/hostname": `${hostname}\n`,
    "/etc/resolv.conf": "",
    "/run/.containerenv": "",
  };
  const content = contents[destination.replace(/^\/var\/run\//, "/run/")];
  const isDirectory = known?.isDirectory ?? content === undefined;
  if (isDirectory) makeDirectory(path, 0o755);
  else write(path, Buffer.from(content ?? ""), 0o644);
}

function isBind(mount: Json): boolean {
  if (mount.type === "bind") return true;
  return Array.isArray(mount.options) && mount.options.some((option) => option === "bind" || option === "rbind");
}

/** CRI-O's list; entries that lack something are left out, since they only help. */
export function parseBindMounts(bytes: Uint8Array): BindMount[] {
  const value = parse(bytes, "bind.mounts");
  if (value === null) return [];
  if (!Array.isArray(value)) throw new FormatError("checkpoint archive", "bind.mounts", "is no list");
  return (value as readonly unknown[]).flatMap((each) => {
    if (!isObject(each) || typeof each.source !== "string" || typeof each.destination !== "string") return [];
    return [{ source: each.source, destination: each.destination, isDirectory: each.file_type === "directory" }];
  });
}

/** The container's id or name, for the runtime: by podman's config.dump or CRI-O's. */
export function containerName(config: Uint8Array | undefined): string | undefined {
  if (config === undefined) return undefined;
  const { id } = parseObject(config, "config.dump");
  return typeof id === "string" && /^[\w+.-]{1,200}$/.test(id) ? id : undefined;
}

/** Where podman mounts named volumes: config.dump's namedVolumes. */
export function volumeDestinations(config: Uint8Array | undefined): ReadonlyMap<string, string> {
  const found = new Map<string, string>();
  if (config === undefined) return found;
  const { namedVolumes } = parseObject(config, "config.dump");
  for (const each of Array.isArray(namedVolumes) ? (namedVolumes as readonly unknown[]) : []) {
    if (!isObject(each)) continue;
    const { volumeName, dest } = each;
    if (typeof volumeName === "string" && typeof dest === "string") found.set(volumeName, dest);
  }
  return found;
}

function parseObject(bytes: Uint8Array, name: string): Json {
  const value = parse(bytes, name);
  if (!isObject(value)) throw new FormatError("checkpoint archive", name, "is no JSON object");
  return { ...value };
}

function parse(bytes: Uint8Array, name: string): unknown {
  try {
    return JSON.parse(Buffer.from(bytes).toString("utf8"));
  } catch (cause) {
    throw new FormatError("checkpoint archive", name, "is no JSON", { cause });
  }
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function write(path: string, bytes: Uint8Array, permissions = 0o600): void {
  const fd = createFile(path, permissions);
  try {
    writeAt(fd, bytes, 0);
  } finally {
    closeFile(fd);
  }
}
