/**
 * Calling libc by koffi: for the `libc` files of this directory only, which have one typed function per system call.
 *
 * Guarantees: a failed call throws an error shaped like Node's own (`code` "EAGAIN", `errno`, `syscall`, `path`). As in Node, errno
 * 95 is named "ENOTSUP", also where man pages say EOPNOTSUPP. koffi (16 ms) is loaded by the first call, not by the import.
 * Works on x86_64 and arm64, glibc and musl.
 */
import { createRequire } from "node:module";
import { systemError } from "./system-error.ts";

export type Path = string | Uint8Array;

interface Native {
  (...args: readonly unknown[]): number;
  /** On a thread of libuv's pool; the last argument is told the error, if the call could not be made, and the result. */
  async(...args: readonly unknown[]): void;
}
interface Library {
  func(definition: string): Native;
}
interface Koffi {
  load(name: string): Library;
  errno(): number;
}

let koffi: Koffi | undefined;
let library: Library | undefined;
const functions = new Map<string, Native>();

function load(): Library {
  koffi = createRequire(import.meta.url)("koffi") as Koffi;
  const musl = process.arch === "arm64" ? "libc.musl-aarch64.so.1" : "libc.musl-x86_64.so.1";
  try {
    return koffi.load("libc.so.6");
  } catch (error) {
    try {
      return koffi.load(musl);
    } catch {
      throw error; // neither is there: the message about glibc is the useful one
    }
  }
}

function find(definition: string): Native {
  let native = functions.get(definition);
  if (native === undefined) {
    library ??= load();
    native = library.func(definition);
    functions.set(definition, native);
  }
  return native;
}

/** Calls a libc function; throws when it answers -1. */
export function call(definition: string, syscall: string, path: Path | undefined, ...args: readonly unknown[]): number {
  const result = find(definition)(...args);
  if (result === -1) throw systemError(koffi!.errno(), syscall, path === undefined ? undefined : display(path));
  return result;
}

/** As {@link call}, without holding up this thread; false when it failed, of which no more is known. */
export function callAside(definition: string, ...args: readonly unknown[]): Promise<boolean> {
  return new Promise((resolve, reject) => {
    find(definition).async(...args, (error: unknown, result: number) => {
      if (error instanceof Error) reject(error);
      else resolve(result !== -1);
    });
  });
}

function display(path: Path): string {
  return typeof path === "string" ? path : Buffer.from(path).toString();
}

/** NUL-terminated bytes; a NUL inside would silently cut the path, so it is refused as the kernel refuses empty ones. */
export function cString(path: Path, syscall: string): Buffer {
  const text = typeof path === "string" ? Buffer.from(path) : path;
  if (text.includes(0)) throw systemError("EINVAL", syscall, display(path));
  return Buffer.concat([text, Buffer.of(0)]);
}

export const AT_FDCWD = -100;
