/**
 * All commands. Each is a module of its own, loaded when it is asked for: `shale images` doesn't pay for the HTTP client
 * of `shale pull`.
 */
import type { Command } from "./command.ts";
import type { CommandGroup } from "./help.ts";

export interface CommandEntry {
  /** One word, or two: the name of a family and the command's in it. */
  readonly name: string;
  readonly group: string;
  load(): Promise<Command>;
}

const START = "Start here";
const IMAGES = "Images";
const READING = "Reading and mounting";
const EXPORTS = "Disks for others";
const CONTAINERD = "For containerd";
const CHECKPOINTS = "Checkpoints";
const STORE = "The store";
const SELF = "shale itself";

/** First words that many commands share, with what the overview says of all of them. */
export const FAMILIES: Readonly<Record<string, string>> = {
  checkpoint: "Write, restore, read, move and keep container checkpoints",
};

/** In the order of help. */
export const COMMANDS: readonly CommandEntry[] = [
  { name: "demo", group: START, load: async () => (await import("./commands/demo.ts")).demo },
  { name: "pull", group: IMAGES, load: async () => (await import("./commands/pull.ts")).pull },
  { name: "images", group: IMAGES, load: async () => (await import("./commands/images.ts")).images },
  { name: "layers", group: IMAGES, load: async () => (await import("./commands/layers.ts")).layers },
  { name: "inspect", group: IMAGES, load: async () => (await import("./commands/inspect.ts")).inspect },
  { name: "history", group: IMAGES, load: async () => (await import("./commands/history.ts")).history },
  { name: "save", group: IMAGES, load: async () => (await import("./commands/save.ts")).save },
  { name: "convert", group: IMAGES, load: async () => (await import("./commands/convert.ts")).convert },
  { name: "load", group: IMAGES, load: async () => (await import("./commands/load.ts")).load },
  { name: "push", group: IMAGES, load: async () => (await import("./commands/push.ts")).push },
  { name: "serve", group: IMAGES, load: async () => (await import("./commands/serve.ts")).serve },
  { name: "mount", group: READING, load: async () => (await import("./commands/mount.ts")).mount },
  { name: "umount", group: READING, load: async () => (await import("./commands/umount.ts")).umount },
  { name: "ls", group: READING, load: async () => (await import("./commands/ls.ts")).ls },
  { name: "cat", group: READING, load: async () => (await import("./commands/cat.ts")).cat },
  { name: "stat", group: READING, load: async () => (await import("./commands/stat.ts")).stat },
  { name: "diff", group: READING, load: async () => (await import("./commands/diff.ts")).diff },
  { name: "checkout", group: READING, load: async () => (await import("./commands/checkout.ts")).checkout },
  { name: "export", group: EXPORTS, load: async () => (await import("./commands/export.ts")).exportCommand },
  { name: "verity", group: EXPORTS, load: async () => (await import("./commands/verity.ts")).verity },
  { name: "verify", group: EXPORTS, load: async () => (await import("./commands/verify.ts")).verify },
  { name: "daemon", group: CONTAINERD, load: async () => (await import("./commands/daemon.ts")).daemon },
  {
    name: "checkpoint save",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/save.ts")).checkpointSave,
  },
  {
    name: "checkpoint write",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/write.ts")).checkpointWrite,
  },
  {
    name: "checkpoint restore",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/restore.ts")).checkpointRestore,
  },
  {
    name: "checkpoint show",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/show.ts")).checkpointShow,
  },
  {
    name: "checkpoint ls",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/ls.ts")).checkpointLs,
  },
  {
    name: "checkpoint push",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/push.ts")).checkpointPush,
  },
  {
    name: "checkpoint pull",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/pull.ts")).checkpointPull,
  },
  {
    name: "checkpoint import",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/import.ts")).checkpointImport,
  },
  {
    name: "checkpoint export",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/export.ts")).checkpointExport,
  },
  {
    name: "checkpoint list",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/list.ts")).checkpointList,
  },
  {
    name: "checkpoint convert",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/convert.ts")).checkpointConvert,
  },
  {
    name: "checkpoint diff",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/diff.ts")).checkpointDiff,
  },
  {
    name: "checkpoint verify",
    group: CHECKPOINTS,
    load: async () => (await import("./commands/checkpoint/verify.ts")).checkpointVerify,
  },
  { name: "df", group: STORE, load: async () => (await import("./commands/df.ts")).df },
  { name: "rm", group: STORE, load: async () => (await import("./commands/rm.ts")).rm },
  { name: "gc", group: STORE, load: async () => (await import("./commands/gc.ts")).gc },
  { name: "pin", group: STORE, load: async () => (await import("./commands/pin.ts")).pin },
  { name: "unpin", group: STORE, load: async () => (await import("./commands/unpin.ts")).unpin },
  { name: "check", group: STORE, load: async () => (await import("./commands/check.ts")).check },
  { name: "completion", group: SELF, load: async () => (await import("./commands/completion.ts")).completion },
  { name: "version", group: SELF, load: async () => (await import("./commands/version.ts")).version },
];

/** The family that a command is in, if it is in one. */
export function familyOf(name: string): string | undefined {
  const space = name.indexOf(" ");
  return space < 0 ? undefined : name.slice(0, space);
}

/** Every command, loaded, by group and in the order of help. */
export async function loadGroups(entries: readonly CommandEntry[] = COMMANDS): Promise<readonly CommandGroup[]> {
  const loaded = await Promise.all(entries.map(async ({ group, load }) => ({ group, command: await load() })));
  const titles = [...new Set(loaded.map(({ group }) => group))];
  return titles.map((title) => ({
    title,
    commands: loaded.filter(({ group }) => group === title).map(({ command }) => command),
  }));
}

export async function loadCommands(): Promise<readonly Command[]> {
  return (await loadGroups()).flatMap(({ commands }) => commands);
}
