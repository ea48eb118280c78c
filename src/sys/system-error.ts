/** Errors with the shape of Node's own system errors, for system calls made by koffi and for injected faults. */
import { constants } from "node:os";
import { getSystemErrorMap } from "node:util";

/** What Node's fs functions throw; `code` is the errno's name and `errno` its negated number. */
export interface SystemError extends Error {
  readonly code: string;
  readonly errno: number;
  readonly syscall: string;
  readonly path?: string;
  readonly dest?: string;
}

/** Builds "EAGAIN: resource temporarily unavailable, flock '/path'". `errno` is a positive number or a name. */
export function systemError(errno: number | string, syscall: string, path?: string, dest?: string): SystemError {
  const number = typeof errno === "number" ? errno : errnoNumber(errno);
  const [code, text] = getSystemErrorMap().get(-number) ?? [nameOf(number), "system error"];
  const place = path === undefined ? "" : ` '${path}'`;
  const target = dest === undefined ? "" : ` -> '${dest}'`;
  return Object.assign(new Error(`${code}: ${text}, ${syscall}${place}${target}`), {
    code,
    errno: -number,
    syscall,
    ...(path === undefined ? {} : { path }),
    ...(dest === undefined ? {} : { dest }),
  });
}

/** The number of an errno's name; TypeError for a name that Linux does not have. */
export function errnoNumber(name: string): number {
  const number = (constants.errno as Record<string, number>)[name] ?? EXTRA[name];
  if (number === undefined) throw new TypeError(`${name} is not the name of an errno`);
  return number;
}

/** Names that libuv does not know, include/uapi/asm-generic/errno.h and errno-base.h. */
const EXTRA: Readonly<Record<string, number>> = { ENOTBLK: 15, EUCLEAN: 117, EDQUOT: 122 };

function nameOf(number: number): string {
  for (const table of [EXTRA, constants.errno as Record<string, number>]) {
    for (const [name, value] of Object.entries(table)) if (value === number) return name;
  }
  return `E${number}`;
}
