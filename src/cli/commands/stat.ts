import { displayBytes } from "../../bytes/index.ts";
import { FileType } from "../../formats/layer-index/index.ts";
import type { FileDetails } from "../../images/files.ts";
import { formatBytes, formatCount, formatFields } from "../format.ts";
import { emit } from "../output.ts";
import { describeFile, formatMode, formatTimestamp, kindOf, namedBytes } from "./image-file.ts";
import { withImageTree } from "./store-access.ts";
import { defineCommand } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const stat = defineCommand({
  name: "stat",
  summary: "Show all that is known of files in an image",
  description: `
Type, mode, owner, times, size, links, extended attributes, payload digest, and where the payload is in the store.
`,
  arguments: [
    { name: "REF", help: "Name or digest of an image in the store", completes: "image" },
    {
      name: "PATH",
      help: "File or directory in the image; a link itself, not what it points at",
      repeated: true,
      completes: "none",
    },
  ],
  options: {
    platform: PLATFORM,
  },
  examples: [{ command: "shale stat python:3.12 /usr/bin/python3", help: "One file" }],
  async run(context) {
    const [ref, ...paths] = context.positionals;
    await withImageTree(context, "stat", ref!, context.values.platform, async (tree) => {
      const files = paths.map((path) => tree.describe(path));
      if (context.json) await emit(context, { files: files.map(describeDetails) }, String);
      else await context.stdout.write(files.map(formatDetails).join("\n"));
    });
    return undefined;
  },
});

function describeDetails(file: FileDetails): Readonly<Record<string, unknown>> {
  return {
    ...describeFile(file),
    xattrs: file.xattrs.map(({ name, value }) => ({
      ...namedBytes("name", name),
      valueBase64: Buffer.from(value, "latin1").toString("base64"),
    })),
    digest: file.digest,
    stored: file.stored,
  };
}

export function formatDetails(file: FileDetails): string {
  const { inode, target, stored, xattrs } = file;
  const kind = kindOf(inode.mode);
  const octal = (inode.mode & ~FileType.MASK).toString(8).padStart(4, "0");
  const fields: (readonly [string, string])[] = [
    ["Path", displayBytes(file.path)],
    ["Type", kind],
    ["Mode", `${octal} ${formatMode(inode.mode)}`],
    ["Owner", `${inode.uid}:${inode.gid}`],
    ["Modified", formatTimestamp(inode.mtimeSeconds, inode.mtimeNanoseconds)],
    ["Links", String(inode.links)],
  ];
  if (target !== undefined) fields.push(["Target", displayBytes(target)]);
  if (kind === "file") fields.push(["Size", sizeText(inode.size)]);
  if (kind === "character device" || kind === "block device") {
    fields.push(["Device", `${inode.rdevMajor}, ${inode.rdevMinor}`]);
  }
  for (const { name, value } of xattrs) fields.push(["Xattr", `${displayBytes(name)}=${displayBytes(value)}`]);
  if (file.digest !== undefined) fields.push(["Digest", file.digest]);
  if (stored === "inline") fields.push(["Stored", "inside the metadata image"]);
  else if (stored !== undefined) fields.push(["Stored", `blob ${stored.blob} at byte ${stored.offset}`]);
  return formatFields(fields);
}

function sizeText(size: number): string {
  return size < 1000 ? formatBytes(size) : `${formatCount(size)} B (${formatBytes(size)})`;
}
