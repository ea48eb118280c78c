/** The fields of CRIU's messages that shale shows. images/*.proto of checkpoint-restore/criu; numbers are theirs. */
import { bool, inner, message, text, u32, u32s, u64 } from "./wire.ts";

/** inventory.proto */
export const INVENTORY = message("inventory_entry", {
  imgVersion: u32(1),
  /** Microseconds since boot. */
  dumpUptime: u64(8),
  tcpClose: bool(10),
  networkLockMethod: u32(11),
});

/** pstree.proto */
export const PSTREE = message("pstree_entry", {
  pid: u32(1),
  ppid: u32(2),
  pgid: u32(3),
  sid: u32(4),
  threads: u32s(5),
});

/** creds.proto */
const CREDS = message("creds_entry", { uid: u32(1), gid: u32(2) });

/** core.proto */
const TASK = message("task_core_entry", { state: u32(1), exitCode: u32(2), comm: text(6) });
const THREAD = message("thread_core_entry", { creds: inner(10, CREDS), seccompMode: u32(11), comm: text(13) });
export const CORE = message("core_entry", { machine: u32(1), task: inner(3, TASK), thread: inner(5, THREAD) });

/** mm.proto; addresses are of the process's memory. */
export const MM = message("mm_entry", {
  argStart: u64(8),
  argEnd: u64(9),
  envStart: u64(10),
  envEnd: u64(11),
  exeFileId: u32(12),
});

/** pagemap.proto */
export const PAGEMAP_HEAD = message("pagemap_head", { pagesId: u32(1) });
export const PAGEMAP = message("pagemap_entry", {
  address: u64(1),
  compatPages: u32(2),
  inParent: bool(3),
  flags: u32(4),
  pages: u64(5),
});

/** regfile.proto, fdinfo.proto */
const REGULAR = message("reg_file_entry", { id: u32(1), name: text(6) });
export const FILE = message("file_entry", { type: u32(1), id: u32(2), regular: inner(3, REGULAR) });

/** utsns.proto */
export const UTSNS = message("utsns_entry", { nodename: text(1), domainname: text(2) });

/** stats.proto; times in microseconds. */
const DUMP_STATS = message("dump_stats_entry", {
  freezing: u32(1),
  frozen: u32(2),
  memdump: u32(3),
  memwrite: u32(4),
  pagesScanned: u64(5),
  pagesSkippedParent: u64(6),
  pagesWritten: u64(7),
});
export const STATS = message("stats_entry", { dump: inner(1, DUMP_STATS) });

/** compel/include/uapi/task-state.h: COMPEL_TASK_ALIVE and so on. */
export const TASK_STATES: Readonly<Record<number, string>> = { 1: "alive", 2: "dead", 3: "stopped", 6: "zombie" };

/** core.proto, core_entry.march */
export const MACHINES: Readonly<Record<number, string>> = {
  1: "amd64",
  2: "arm",
  3: "arm64",
  4: "ppc64le",
  5: "s390x",
  6: "mips64le",
  7: "loong64",
  8: "riscv64",
};
