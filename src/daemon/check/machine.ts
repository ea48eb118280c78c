/** Judges the kernel and the root's file system. Facts are gathered in index.ts; this is pure. */
import type { Finding, FindingState } from "./finding.ts";

export interface MachineFacts {
  readonly root: boolean;
  readonly kernel: { readonly major: number; readonly minor: number; readonly release: string };
  /** File systems that the kernel has, or has a module for. */
  readonly fileSystems: ReadonlySet<string>;
  /** EROFS from files of the root's file system; undefined where that can't be tried. */
  readonly fileBacked: boolean | undefined;
  readonly loop: boolean;
}

export interface RootFacts {
  readonly path: string;
  /** statfs f_type. */
  readonly type: number;
  /** Share in use, 0..1. */
  readonly usedShare: number;
  readonly available: number;
  readonly freeInodes: number;
  /** Per cent of use above which layers are refused. */
  readonly highWatermark: number;
}

export function judgeMachine(facts: MachineFacts): Finding[] {
  const findings: Finding[] = [];
  const say = (state: FindingState, text: string, fix?: string) =>
    findings.push({ topic: "kernel", state, text, ...(fix === undefined ? {} : { fix }) });
  const { kernel, fileSystems, fileBacked, loop } = facts;
  const atLeast = (major: number, minor: number) =>
    kernel.major > major || (kernel.major === major && kernel.minor >= minor);
  if (!facts.root) say("problem", "This user may not mount", "Run the daemon as root");
  for (const name of ["erofs", "overlay"]) {
    if (fileSystems.has(name)) continue;
    say(
      "problem",
      `The kernel has no ${name}, built in or as a module`,
      `Install the module, or a kernel with ${name}`,
    );
  }
  if (!atLeast(5, 16)) {
    say(
      "problem",
      `Linux ${kernel.release} can't mount EROFS images with several devices`,
      "Linux 5.16 or newer is needed",
    );
  } else if (fileBacked === true) say("ok", `Linux ${kernel.release} mounts EROFS from files`);
  else if (fileBacked === false && loop) {
    say(
      "note",
      `Linux ${kernel.release} mounts EROFS through loop devices, one for each blob`,
      "Linux 6.12 mounts files",
    );
  } else if (fileBacked === false) {
    say(
      "problem",
      `Linux ${kernel.release} mounts no EROFS from files, and there is no /dev/loop-control`,
      "Load loop",
    );
  } else if (atLeast(6, 12) || loop) say("ok", `Linux ${kernel.release} can mount EROFS`);
  else say("problem", `Linux ${kernel.release} needs loop devices, and there is no /dev/loop-control`, "Load loop");
  if (!atLeast(5, 19)) {
    say("note", `Linux ${kernel.release} has no idmapped overlays: pods with user namespaces need Linux 5.19`);
  }
  return findings;
}

/** linux/magic.h, with what a snapshotter can't have on it. */
const UNFIT: ReadonlyMap<number, string> = new Map([
  [0x6969, "NFS: locks and overlays don't work there"],
  [0xff534d42, "CIFS: locks and overlays don't work there"],
  [0xfe534d42, "SMB: locks and overlays don't work there"],
  [0x65735546, "FUSE: overlays may not have their upper directories there"],
  [0x794c7630, "overlayfs: overlays can't have their upper directories there"],
]);
const TMPFS = 0x01021994;
/** Less than this, and the first image fills it. */
const LITTLE_SPACE = 2 ** 30;
const FEW_INODES = 10_000;

export function judgeRoot({ path, type, usedShare, available, freeInodes, highWatermark }: RootFacts): Finding[] {
  const findings: Finding[] = [];
  const say = (state: FindingState, text: string, fix?: string) =>
    findings.push({ topic: "root", state, text, ...(fix === undefined ? {} : { fix }) });
  const unfit = UNFIT.get(type);
  if (unfit !== undefined) say("problem", `${path} is on ${unfit}`, "Choose a root on a local file system");
  if (type === TMPFS) say("warning", `${path} is on tmpfs: images are gone after a reboot, and take memory`);
  const used = 100 * usedShare;
  if (used > highWatermark) {
    const text = `The disk of ${path} is ${used.toFixed(1)} % full, above the high watermark of ${highWatermark} %`;
    say("problem", `${text}: new layers are refused`, "Free space, or raise disk.high_watermark");
  } else if (available < LITTLE_SPACE) {
    say("warning", `The disk of ${path} has ${Math.floor(available / 2 ** 20)} MiB left`, "Free space");
  } else if (unfit === undefined) say("ok", `${path} has ${Math.floor(available / 2 ** 30)} GiB left`);
  // btrfs says 0: it has no fixed number.
  if (freeInodes > 0 && freeInodes < FEW_INODES)
    say("warning", `The file system of ${path} has ${freeInodes} inodes left`);
  return findings;
}
