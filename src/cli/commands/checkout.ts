import { resolve } from "node:path";
import type { CheckoutResult, LinkMode } from "../../checkout/index.ts";
import { displayName } from "../../images/find.ts";
import { singleLine } from "../../log/index.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes, formatDuration } from "../format.ts";
import { emit } from "../output.ts";
import { PLATFORM } from "./options.ts";
import { openStore } from "./store-access.ts";

const LINK_MODES = ["auto", "reflink", "hardlink", "copy"] as const satisfies readonly LinkMode[];

export const checkout = defineCommand({
  name: "checkout",
  summary: "Write an image as a plain directory",
  description: `
For what can't mount EROFS. Everything is in it: owners, modes, xattrs, times to the nanosecond, hard links, devices, holes. The
directory appears complete or not at all; an existing one is refused, or with --replace swapped for the new one in one step.

--link says how files get their content. auto shares blocks with the store where the file system can (reflink: XFS, btrfs) and
copies otherwise. hardlink makes files that are the same in content, owner, mode, xattrs and time one inode in all checkouts:
they take no space and one copy in memory, and a write to one is a write to all, so use such directories read-only or as
lower directories of an overlay. What can't be done falls back, from hardlink to reflink to copy, and is told.

With --layers, each layer becomes a directory of its own (DIR/0 is the lowest), with the whiteouts that overlayfs understands.
Without root, files belong to the caller; what that loses is counted, and listed with --json.
`,
  arguments: [
    { name: "REF", help: "Name or digest of an image in the store", completes: "image" },
    { name: "DIR", help: "Directory to make; what it is in must exist", completes: "directory" },
  ],
  options: {
    platform: PLATFORM,
    link: { type: "string", value: "HOW", choices: LINK_MODES, default: "auto", help: "How files get their content" },
    layers: { type: "flag", short: "l", help: "Each layer in a directory of its own, for an overlay" },
    replace: { type: "flag", help: "Swap an existing directory for the new one, then remove it" },
    verify: { type: "flag", help: "Read files shared by hard link before they are handed on" },
    jobs: { type: "number", short: "j", value: "N", minimum: 1, maximum: 64, help: "Threads that write; one a core" },
  },
  examples: [
    { command: "shale checkout python:3.12 ./rootfs", help: "A root file system as a directory" },
    { command: "shale checkout python:3.12 ./rootfs --link hardlink --replace", help: "Shared with other checkouts" },
    { command: "shale checkout python:3.12 ./layers --layers", help: "Lower directories for an overlay" },
  ],
  async run(context) {
    const { values, signal, progress } = context;
    const startMs = performance.now();
    const { checkoutImage, Crew } = await import("../../checkout/index.ts");
    await using crew = new Crew(values.jobs); // they start while the store is opened
    const { findImage } = await import("../../images/find.ts");
    await using store = await openStore(context);
    const { image, manifest } = findImage(store, context.positionals[0]!, values.platform);
    const name = displayName(image.name);
    using operation = store.begin(`checkout ${name}`);
    const sizes = manifest.layers.map(({ diffId }) => store.findLayer(diffId)?.contentBytes ?? 0);
    const task = progress.start("checkout", { label: name, total: sizes.reduce((sum, size) => sum + size, 0) });
    let told = 0;
    try {
      const result = await checkoutImage(operation, manifest, resolve(context.positionals[1]!), crew, {
        ...values,
        signal,
        onProgress({ bytes }) {
          task.advance(bytes - told);
          told = bytes;
        },
      });
      task.done();
      const elapsedMs = performance.now() - startMs;
      await emit(context, { ...result, elapsedMs }, () => formatCheckout(result, elapsedMs));
      return undefined;
    } catch (error) {
      task.fail();
      throw error;
    }
  },
});

/** What was written, how much of it is shared, what was lost, and what the reader must know before writing to it. */
export function formatCheckout(result: CheckoutResult, elapsedMs: number): string {
  const { path, files, directories, symlinks, others, bytes, layers, fallbacks } = result;
  const counts = [
    countOf(files, "file"),
    countOf(directories, "directory", "directories"),
    countOf(symlinks, "symlink"),
    ...(others > 0 ? [`${others} other`] : []),
  ];
  const lines = [`${singleLine(path)}: ${counts.join(", ")}, ${formatBytes(bytes)} in ${formatDuration(elapsedMs)}`];
  const shares = [
    ...(result.linked > 0 ? [`${formatBytes(result.linkedBytes)} shared with other checkouts`] : []),
    ...(result.reflinked > 0 ? [`${formatBytes(result.reflinkedBytes)} sharing blocks with the store`] : []),
    ...(result.copied > 0 ? [`${formatBytes(result.copiedBytes)} copied`] : []),
  ];
  if (shares.length > 0) lines.push(shares.join(", "));
  for (const fallback of fallbacks) lines.push(`fell back: ${fallback}`);
  if (result.sharesInodes) {
    lines.push(
      "Files share their inodes with other checkouts: do not write to them in place, a write to one is a write to all.",
    );
    lines.push(`Use it read-only (mount --bind -o ro ${singleLine(path)} ${singleLine(path)}) or below an overlay.`);
  }
  if (result.replaced > 0) {
    lines.push(
      `${countOf(result.replaced, "shared file")} had been written to and ${result.replaced === 1 ? "was" : "were"} made anew: other checkouts may have what was written`,
    );
  }
  if (result.leftOver !== undefined) {
    lines.push(`The replaced tree is in use: ${singleLine(result.leftOver)} stays until the next checkout to here.`);
  }
  lines.push(...formatLosses(result));
  if (layers.length > 0) {
    const option = result.userXattrs ? ",userxattr" : "";
    lines.push(
      "",
      "Mount:",
      `  mount -t overlay overlay -o lowerdir=${[...layers].reverse().map(singleLine).join(":")}${option} /mnt`,
    );
  }
  return `${lines.join("\n")}\n`;
}

const LOST = {
  owner: "files belong to you, not to their owner",
  "set-id bit": "files lost their set-user-ID or set-group-ID bit with their owner",
  xattr: "extended attributes were not written",
  device: "devices were not made",
  symlink: "symlinks were not made, their targets being longer than the file system takes",
} as const;

function formatLosses({ losses }: CheckoutResult): string[] {
  const kinds = (Object.keys(LOST) as (keyof typeof LOST)[]).filter((kind) => losses[kind] > 0);
  const lines = kinds.map((kind) => `lost: ${losses[kind]} ${LOST[kind]}`);
  return lines.length === 0 ? [] : [...lines, "(--json lists them)"];
}
