/**
 * What goes into the layers of the demo's two images.
 *
 * v1 = base, data, app. v2 = base, a rebuilt data layer in which few files differ, app, changes. So the pull of v2 finds one
 * layer that it has, one that is new and made of files that it has, and whiteouts of every kind.
 */
import { createHash } from "node:crypto";
import { fromUtf8 } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { realPath } from "../sys/index.ts";
import { HostFiles } from "./host-files.ts";
import { addProgram } from "./programs.ts";
import { opaquePath, type PlannedEntry, whiteoutPath } from "./tree.ts";

export interface DemoPlan {
  readonly base: readonly PlannedEntry[];
  readonly data: readonly PlannedEntry[];
  readonly rebuiltData: readonly PlannedEntry[];
  readonly app: readonly PlannedEntry[];
  readonly changes: readonly PlannedEntry[];
  /** Files of the host that were wanted and not taken, see HostFiles.skipped. */
  readonly skipped: number;
}

export interface DemoSize {
  /** Files and bytes of the data layer. */
  readonly files: number;
  readonly bytes: number;
  /** Programs of the base, beside sh; those that the host lacks are left out. */
  readonly programs: readonly string[];
}

/** No directory is more than a quarter of the data layer, so that it is varied on a large host. */
const SHARE = 4;

/** The rest of the base is what of these the host has. Debian's essential packages have most. */
const PROGRAMS =
  "bash ls cat cp mv rm ln mkdir rmdir chmod chown touch stat readlink realpath basename dirname pwd echo printf test " +
  "true false sleep date uname id whoami env head tail cut sort uniq wc tr tee seq nproc du df dd sync md5sum sha1sum " +
  "sha256sum sha512sum b2sum base64 od comm join paste expand fold nl split tac find xargs grep egrep sed mawk awk " +
  "tar gzip gunzip zcat bzip2 xz zstd diff cmp perl python3 openssl sqlite3 less vi more file getent ldconfig ps " +
  "getfattr tput clear infocmp hostname busybox";

/** Both data layers are compressed, at 50 to 100 MB/s a core: this is what makes the demo take seconds and not more. */
export const DEFAULT_SIZE: DemoSize = { files: 6000, bytes: 64 << 20, programs: PROGRAMS.split(" ") };
/** Sources of the data layer, the most interesting first; a minimal Debian has perhaps half. */
const DATA = [
  ...["/usr/share/zoneinfo", "/usr/share/perl", "/usr/share/perl5", "/usr/share/bash-completion", "/etc/ssl/certs"],
  ...["/usr/lib/python3", "/usr/lib/python3.11", "/usr/lib/python3.12", "/usr/lib/python3.13", "/usr/lib/node_modules"],
  ...["/usr/local/lib/node_modules", "/usr/share/nodejs", "/usr/share/terminfo", "/usr/share/i18n", "/usr/share/misc"],
  ...["/usr/share/ca-certificates", "/usr/share/doc", "/usr/share/locale", "/usr/share/man", "/usr/share/info"],
  ...["/usr/share/vim", "/usr/include", "/usr/share", "/usr/lib", "/usr/local/lib"],
];

/** Plain files of the host that programs look at. Accounts are made up: those of the host are nobody's business. */
const CONFIGURATION = ["/etc/os-release", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/debian_version", "/etc/profile"];

/** 2026-01-01T00:00:00Z; entries that the demo makes up have times that don't depend on when it runs. */
const MADE = 1_767_225_600;

/** Looks at the host and decides; reads no contents. FAILED_PRECONDITION when the host has no /bin/sh. */
export function planDemo(size: DemoSize): DemoPlan {
  const base = planBase(size.programs);
  const data = new HostFiles(base);
  for (const path of DATA) {
    const files = Math.min(size.files, data.files + Math.ceil(size.files / SHARE));
    const bytes = Math.min(size.bytes, data.bytes + Math.ceil(size.bytes / SHARE));
    data.addTree(path, { files, bytes });
  }
  const entries = [...data.entries.values()];
  const { rebuilt, victim } = rebuild(entries);
  return {
    base: [...base.entries.values()],
    data: entries,
    rebuiltData: rebuilt,
    app: planApp(),
    changes: planChanges(deletion(rebuilt, victim)),
    skipped: base.skipped + data.skipped,
  };
}

function planBase(programs: readonly string[]): HostFiles {
  const files = new HostFiles();
  files.addMade(directory("."));
  if (!addProgram(files, "sh")) {
    throw new ShaleError("FAILED_PRECONDITION", "Cannot make the demo image: this host has no sh that can be read", {
      hint: "Name an image of a registry: shale demo REF",
    });
  }
  // Every distribution has these paths in programs and scripts, whether as directories or as symlinks into /usr.
  for (const path of ["/bin", "/sbin", "/lib", "/lib64", "/etc", "/usr/bin/env"]) {
    if (realPath(path) !== undefined) files.addFile(path);
  }
  for (const name of programs) addProgram(files, name);
  for (const path of CONFIGURATION) files.addFile(path);
  if (!files.entries.has("etc")) files.addMade(directory("etc"));
  files.addMade(file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"));
  files.addMade(file("etc/group", "root:x:0:\nnogroup:x:65534:\n"));
  files.addMade(file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"));
  for (const name of ["dev", "proc", "sys", "run", "var", "var/tmp", "home"]) files.addMade(directory(name));
  files.addMade(directory("root", { mode: 0o700 }));
  files.addMade(directory("tmp", { mode: 0o1777 }));
  return files;
}

/** A small application with one of everything that a layer can hold. */
function planApp(): PlannedEntry[] {
  const script = `#!/bin/sh\necho "Hello from $(cat /app/version), running from an image that was never unpacked"\n`;
  const numbers = Array.from({ length: 100 }, (_, i) =>
    file(`app/data/${String(i).padStart(3, "0")}.txt`, `file ${i}\n`.repeat(i + 1)),
  );
  return [
    directory("app"),
    file("app/hello", script, { mode: 0o755 }),
    file("app/version", "version 1\n"),
    file("app/empty", ""),
    { ...made("app/hello-again"), type: "hardlink", linkTarget: "app/hello", mode: 0o755 },
    { ...made("app/current"), type: "symlink", linkTarget: "data/001.txt", mode: 0o777 },
    { ...made("app/pipe"), type: "fifo", mode: 0o644 },
    file("app/random.bin", randomBytes(1 << 20)),
    file("app/zeros.bin", new Uint8Array(4 << 20)),
    file("app/before-1970", "old\n", { mtimeSeconds: -86_400, mtimeNanoseconds: 500_000_000 }),
    file("app/nanoseconds", "exact\n", { mtimeNanoseconds: 123_456_789 }),
    file("app/owned", "by 1000:1001\n", { uid: 1000, gid: 1001, mode: 0o4751 }),
    file("app/attributes", "has xattrs\n", { xattrs: [{ name: "user.shale.demo", value: "\x00binary\xff" }] }),
    file(fromUtf8("app/Ünïcödé ✓"), "UTF-8\n"),
    file("app/bytes-\xff\xfe", "a name that is not UTF-8\n"),
    file(`app/${"long-name-".repeat(20)}`, "200 bytes\n"),
    directory("app/data"),
    ...numbers,
    directory("app/cache"),
    file("app/cache/old", "of version 1\n"),
    directory("app/legacy"),
    directory("app/legacy/deep"),
    file("app/legacy/deep/file", "goes with its directory\n"),
    file("app/removed", "goes alone\n"),
    directory("app/becomes-file"),
    file("app/becomes-file/inside", "gone in version 2\n"),
  ];
}

/** The top layer of v2: deletions of all three kinds, changes, additions. `victims` delete from the data layer. */
function planChanges(victims: readonly PlannedEntry[]): PlannedEntry[] {
  const next = MADE + 86_400;
  return [
    directory("app", { mtimeSeconds: next }),
    whiteout(whiteoutPath("app/removed")),
    whiteout(whiteoutPath("app/legacy")),
    whiteout(whiteoutPath("app/data/000.txt")),
    directory("app/cache", { mtimeSeconds: next }),
    whiteout(opaquePath("app/cache")),
    file("app/cache/new", "of version 2\n", { mtimeSeconds: next }),
    file("app/becomes-file", "it was a directory\n", { mtimeSeconds: next }),
    file("app/version", "version 2\n", { mtimeSeconds: next }),
    file("app/data/100.txt", "added\n", { mtimeSeconds: next }),
    ...victims,
  ];
}

/** A whiteout of `victim`, after the directories on the way, which image builders write too. */
function deletion(entries: readonly PlannedEntry[], victim: PlannedEntry | undefined): PlannedEntry[] {
  if (victim === undefined) return [];
  const above = entries.filter((one) => one.type === "directory" && victim.path.startsWith(`${one.path}/`));
  return [...above, whiteout(whiteoutPath(victim.path))];
}

/** Of the files that are nobody's hard link: every so many-th is changed or left out of the rebuilt layer. */
const CHANGED_EVERY = 97;
const REMOVED_EVERY = 89;
const CHANGE = "\n# changed in version 2 of the shale demo\n";

function rebuild(entries: readonly PlannedEntry[]): {
  readonly rebuilt: PlannedEntry[];
  readonly victim: PlannedEntry | undefined;
} {
  const linked = new Set(entries.filter((entry) => entry.type === "hardlink").map((entry) => entry.linkTarget));
  let count = 0;
  let victim: PlannedEntry | undefined;
  const rebuilt = entries.flatMap((entry) => {
    const { content } = entry;
    if (content === undefined || linked.has(entry.path)) return [entry];
    count++;
    if (count % REMOVED_EVERY === 0) return [];
    if (count % CHANGED_EVERY === 0) {
      const changed = () => Buffer.concat([content(), Buffer.from(CHANGE)]);
      return [{ ...entry, mtimeSeconds: entry.mtimeSeconds + 1, content: changed }];
    }
    victim ??= entry;
    return [entry];
  });
  const added = [
    directory("srv"),
    ...[1, 2, 3, 4, 5].map((i) => file(`srv/added-${i}`, `added in version 2: ${i}\n`.repeat(i * 50))),
  ];
  return { rebuilt: [...rebuilt, ...added], victim };
}

function made(path: string): Omit<PlannedEntry, "type" | "mode"> {
  return {
    ...{ path, linkTarget: "", uid: 0, gid: 0, mtimeSeconds: MADE, mtimeNanoseconds: 0 },
    ...{ rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  };
}

function directory(path: string, more: Partial<PlannedEntry> = {}): PlannedEntry {
  return { ...made(path), type: "directory", mode: 0o755, ...more };
}

function file(path: string, content: string | Uint8Array, more: Partial<PlannedEntry> = {}): PlannedEntry {
  const bytes = Buffer.from(content);
  return { ...made(path), type: "file", mode: 0o644, content: () => bytes, ...more };
}

function whiteout(path: string): PlannedEntry {
  return file(path, "", { mode: 0o600 });
}

/** Bytes that don't compress, the same each time. */
function randomBytes(size: number): Uint8Array {
  const parts = Array.from({ length: size / 32 }, (_, i) => createHash("sha256").update(`shale demo ${i}`).digest());
  return Buffer.concat(parts);
}
