/** What this process may do to files, as the kernel tells it: proc_pid_status(5), capabilities(7). */
import { readFileSync } from "node:fs";

export interface ProcessRights {
  /** Owner of the files that it makes (fsuid, fsgid). */
  readonly uid: number;
  readonly gid: number;
  readonly umask: number;
  /** May give files away and work on those of others. */
  readonly privileged: boolean;
  /** May write `trusted.` xattrs: not in a user namespace of its own. */
  readonly trusted: boolean;
}

const CAP_CHOWN = 1n << 0n;
const CAP_DAC_OVERRIDE = 1n << 1n;
const CAP_FOWNER = 1n << 3n;
const CAP_SYS_ADMIN = 1n << 21n;
const OWNERSHIP = CAP_CHOWN | CAP_DAC_OVERRIDE | CAP_FOWNER;
/** All ids, each itself: the first user namespace. */
const WHOLE_MAP = /^\s*0\s+0\s+4294967295\s*$/;

export function processRights(): ProcessRights {
  return parseRights(readFileSync("/proc/self/status", "latin1"), readFileSync("/proc/self/uid_map", "latin1"));
}

/** Pure part of {@link processRights}. */
export function parseRights(status: string, uidMap: string): ProcessRights {
  const field = (name: string, pattern: string): string => {
    const match = new RegExp(`^${name}:\\s*${pattern}`, "m").exec(status);
    if (match === null) throw new RangeError(`/proc/self/status has no ${name}`);
    return match[1]!;
  };
  const capabilities = BigInt(`0x${field("CapEff", "([0-9a-f]+)")}`);
  return {
    uid: Number(field("Uid", "\\d+\\s+\\d+\\s+\\d+\\s+(\\d+)")),
    gid: Number(field("Gid", "\\d+\\s+\\d+\\s+\\d+\\s+(\\d+)")),
    umask: Number.parseInt(field("Umask", "([0-7]+)"), 8),
    privileged: (capabilities & OWNERSHIP) === OWNERSHIP,
    trusted: (capabilities & CAP_SYS_ADMIN) !== 0n && WHOLE_MAP.test(uidMap),
  };
}
