/**
 * Mounting by fsopen, fsconfig, fsmount and move_mount (the old call has a 4 KiB limit on options).
 *
 * Guarantees: a mount appears at its target complete or not at all, with its final attributes; after a failure nothing
 * stays behind, loop devices included. Failures are ShaleErrors that carry what the kernel said, the system error as
 * `cause`. Paths may be of any length and have any characters. All of this needs CAP_SYS_ADMIN.
 *
 * EROFS and overlay mounts are "nodev": a device node in an image, whatever its permissions, opens no device of the host.
 *
 * Files are mounted directly where the kernel can (Linux 6.12 with the store not on overlayfs), otherwise all of them by
 * loop devices: the kernel refuses a mixture. A mount, or a loop device under one, keeps its files open: removing their
 * names does not disturb it, punching holes into them does (see `isOpenElsewhere`).
 */
import * as fs from "node:fs";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { effect } from "./effects.ts";
import { closeFile } from "./files.ts";
import * as libc from "./libc.ts";
import { attachLoop, type LoopDevice } from "./loop.ts";
import { findMount } from "./mount-info.ts";
import { kernelAtLeast } from "./process.ts";
import type { UserNamespace } from "./user-namespace.ts";

/** A mount that has no place yet, and disappears with `close` or with the process. */
export interface DetachedMount extends Disposable {
  readonly fd: number;
  /** Puts it at `target`, an existing directory, over whatever is there; the handle stays open. */
  attach(target: string): void;
  close(): void;
}

export interface ErofsOptions {
  /** The metadata image. */
  readonly source: string;
  /** Files of the device table, in its order; their number must be that of the image. */
  readonly devices?: readonly string[];
  /** Cache file data once (in EROFS) instead of twice (in the backing file as well). */
  readonly directIo?: boolean;
  /** "auto": files, and loop devices if the kernel refuses files. */
  readonly backing?: "auto" | "file" | "loop";
}

export interface ErofsMount extends DetachedMount {
  readonly backing: "file" | "loop";
}

/** Makes a read-only EROFS mount without a place. */
export function openErofs(options: ErofsOptions): ErofsMount {
  const { backing = "auto" } = options;
  if (backing === "loop") return erofsByLoop(options);
  try {
    return { ...erofs(options.source, options.devices ?? [], options.directIo ?? false), backing: "file" };
  } catch (error) {
    // ENOTBLK: a kernel before 6.12, or an image on overlayfs or EROFS
    if (backing === "auto" && ShaleError.is(error) && errnoOf(error.cause) === "ENOTBLK") return erofsByLoop(options);
    throw error;
  }
}

/** Mounts an EROFS image read-only at `target`; answers what backs it. */
export function mountErofs(options: ErofsOptions & { readonly target: string }): "file" | "loop" {
  using mount = openErofs(options);
  mount.attach(options.target);
  return mount.backing;
}

function erofsByLoop(options: ErofsOptions): ErofsMount {
  const loops: LoopDevice[] = [];
  try {
    const attach = (file: string): string => {
      const loop = attachLoop(file, { readOnly: true, directIo: options.directIo ?? false });
      loops.push(loop);
      return loop.path;
    };
    const source = attach(options.source);
    const devices = (options.devices ?? []).map(attach);
    return { ...erofs(source, devices, false), backing: "loop" };
  } catch (error) {
    throw ShaleError.is(error) ? error : mountError(`Cannot mount ${options.source} (erofs)`, error, []);
  } finally {
    for (const loop of loops) loop.close(); // the mount holds them from here on; without one they are freed
  }
}

function erofs(source: string, devices: readonly string[], directIo: boolean): DetachedMount {
  return create("erofs", source, (config) => {
    config.path("source", source);
    for (const device of devices) config.path("device", device);
    if (directIo) config.flag("directio");
    config.flag("ro");
    return libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NODEV;
  });
}

export interface OverlayOptions {
  /** Uppermost first, as overlayfs counts them; at least one. */
  readonly lower: readonly string[];
  /** Both or neither; on one file system that is not itself an overlay. Without them the overlay is read-only. */
  readonly upper?: string;
  readonly work?: string;
  /** All lower directories in one string, as Linux before 6.7 needs: fewer fit. By the kernel's version unless given. */
  readonly joinLower?: boolean;
  /** Further options of overlayfs: `{ volatile: true, metacopy: "on" }`. */
  readonly options?: Readonly<Record<string, string | true>>;
  /** What mountinfo shows as source. "overlay" unless given. */
  readonly name?: string;
}

/** Makes an overlay mount without a place. */
export function openOverlay(options: OverlayOptions): DetachedMount {
  const name = options.name ?? "overlay";
  return create("overlay", name, (config) => {
    config.string("source", name);
    if (options.joinLower ?? !kernelAtLeast(6, 7)) config.joined("lowerdir", options.lower);
    else for (const path of options.lower) config.path("lowerdir+", path);
    if (options.upper !== undefined) config.path("upperdir", options.upper);
    if (options.work !== undefined) config.path("workdir", options.work);
    for (const [key, value] of Object.entries(options.options ?? {})) {
      if (value === true) config.flag(key);
      else config.string(key, value);
    }
    return (options.upper === undefined ? libc.MOUNT_ATTR_RDONLY : 0) | libc.MOUNT_ATTR_NODEV;
  });
}

export function mountOverlay(options: OverlayOptions & { readonly target: string }): void {
  using mount = openOverlay(options);
  mount.attach(options.target);
}

export interface BindOptions {
  readonly readOnly?: boolean;
  /** Also the mounts below `source`. */
  readonly recursive?: boolean;
  /** Ids as this namespace has them inside on disk, and outside in the mount; FAILED_PRECONDITION where the file system can't. */
  readonly mapping?: UserNamespace;
}

/** A copy of the mount that `source` is in, with `source` as its root. */
export function openBind(source: string, options: BindOptions = {}): DetachedMount {
  try {
    const fd = libc.openTreeClone(source, options.recursive);
    const mount = detached(fd, source);
    try {
      if (options.mapping !== undefined) libc.mountSetIdMap(fd, options.mapping.fd);
      if (options.readOnly) libc.mountSetAttributes(fd, libc.MOUNT_ATTR_RDONLY, 0);
      return mount;
    } catch (error) {
      mount.close();
      throw error;
    }
  } catch (error) {
    throw mountError(`Cannot bind ${source}`, error, []);
  }
}

export function bindMount(source: string, target: string, options: BindOptions = {}): void {
  using mount = openBind(source, options);
  mount.attach(target);
}

/**
 * Removes the uppermost mount at `target`; false when it is not a mount point (then nothing is done). With `lazy` it is out
 * of sight at once and ends when its last user does; without, FAILED_PRECONDITION while something uses it.
 */
export function unmount(target: string, options: { readonly lazy?: boolean } = {}): boolean {
  try {
    return effect("unmount", target, () => {
      libc.umount(target, libc.UMOUNT_NOFOLLOW | (options.lazy ? libc.MNT_DETACH : 0));
      return true;
    });
  } catch (error) {
    if (errnoOf(error) === "EINVAL" && findMount(target) === undefined) return false;
    if (errnoOf(error) !== "EBUSY") throw mountError(`Cannot unmount ${target}`, error, []);
    throw new ShaleError("FAILED_PRECONDITION", `Cannot unmount ${target}: it is in use`, {
      cause: error,
      hint: `End what uses it (fuser -vm ${target} shows it), or unmount lazily`,
    });
  }
}

/**
 * Whether the kernel mounts EROFS from files of `file`'s file system. `file` is any regular file there that is no EROFS
 * image; the kernel logs that it is none. Needs CAP_SYS_ADMIN.
 */
export function supportsErofsFileBacked(file: string): boolean {
  try {
    erofs(file, [], false).close();
    return true;
  } catch (error) {
    const errno = ShaleError.is(error) ? errnoOf(error.cause) : undefined;
    if (errno === "EINVAL") return true; // it looked for a superblock in the file
    if (errno === "ENOTBLK" || errno === "ENODEV") return false;
    throw error;
  }
}

/** The parameters of one file system context; keeps descriptors of paths open until the mount exists. */
class Configuration {
  readonly fd: number;
  readonly #files: number[] = [];

  constructor(fd: number) {
    this.fd = fd;
  }

  flag(key: string): void {
    libc.fsconfig(this.fd, libc.FSCONFIG_SET_FLAG, key, null);
  }

  string(key: string, value: string): void {
    libc.fsconfig(this.fd, libc.FSCONFIG_SET_STRING, key, value);
  }

  path(key: string, path: string): void {
    this.string(key, this.#spelling(path));
  }

  joined(key: string, paths: readonly string[]): void {
    const value = paths.map((path) => this.#spelling(path)).join(":");
    const short = value.length <= VALUE_MAX ? value : paths.map((path) => this.#descriptor(path)).join(":");
    if (short.length > VALUE_MAX) {
      throw new ShaleError(
        "FAILED_PRECONDITION",
        `Cannot stack ${paths.length} layers: their paths are too long for this kernel`,
        {
          hint: "Mount the merged image, or use Linux 6.7 or later",
        },
      );
    }
    this.string(key, short);
  }

  /** The path itself where the kernel takes it unchanged, so that mountinfo names it; otherwise by a descriptor. */
  #spelling(path: string): string {
    const plain = Buffer.byteLength(path) <= VALUE_MAX && !/[\\:,]/.test(path);
    return plain ? path : this.#descriptor(path);
  }

  #descriptor(path: string): string {
    const fd = fs.openSync(path, O_PATH);
    this.#files.push(fd);
    return `/proc/self/fd/${fd}`;
  }

  close(): void {
    for (const fd of this.#files) closeFile(fd);
    closeFile(this.fd);
  }
}

/** strndup_user() in fsconfig(2) takes 256 bytes with the NUL. */
const VALUE_MAX = 255;
const O_PATH = 0o10000000;

/** `configure` sets parameters and answers the mount's attributes. */
function create(type: string, what: string, configure: (config: Configuration) => number): DetachedMount {
  const act = `Cannot mount ${what} (${type})`;
  let config: Configuration;
  try {
    config = new Configuration(libc.fsopen(type));
  } catch (error) {
    throw mountError(act, error, []);
  }
  try {
    const attributes = configure(config);
    libc.fsconfig(config.fd, libc.FSCONFIG_CMD_CREATE, null, null);
    return detached(libc.fsmount(config.fd, attributes), what);
  } catch (error) {
    if (ShaleError.is(error)) throw error;
    throw mountError(act, error, kernelMessages(config.fd));
  } finally {
    config.close();
  }
}

function detached(fd: number, what: string): DetachedMount {
  let open = true;
  const close = (): void => {
    if (open) closeFile(fd);
    open = false;
  };
  return {
    fd,
    attach(target) {
      try {
        effect("mount", target, () => libc.moveMount(fd, target));
      } catch (error) {
        throw mountError(`Cannot mount ${what} at ${target}`, error, []);
      }
    },
    close,
    [Symbol.dispose]: close,
  };
}

/** Each read gives one message, "e overlay: no upperdir"; ENODATA when there are no more. */
function kernelMessages(fd: number): string[] {
  const messages: string[] = [];
  const buffer = Buffer.allocUnsafe(4096);
  for (;;) {
    try {
      const length = fs.readSync(fd, buffer, 0, buffer.length, null);
      messages.push(buffer.toString("utf8", 2, length).trim());
    } catch (error) {
      if (errnoOf(error) === "ENODATA") return messages;
      throw error;
    }
  }
}

function mountError(act: string, error: unknown, messages: readonly string[]): ShaleError {
  if (!(error instanceof Error)) throw error;
  const errno = errnoOf(error);
  const said = messages.length > 0 ? messages.join("; ") : error.message;
  if (errno === "EPERM" || errno === "EACCES") {
    return new ShaleError("PERMISSION_DENIED", `${act}: ${said}`, { cause: error, hint: "Mounting needs root" });
  }
  if (errno === "ENOENT") return new ShaleError("NOT_FOUND", `${act}: ${said}`, { cause: error });
  const hint = errno === "ENODEV" ? "This kernel lacks the file system" : "The kernel log (dmesg) may say more";
  return new ShaleError("FAILED_PRECONDITION", `${act}: ${said}`, { cause: error, hint });
}
