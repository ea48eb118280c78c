import { bytesOf, displayBytes, fromUtf8 } from "../../../bytes/index.ts";
import type { ListedFile } from "../../../checkpoint/show/index.ts";
import { defineCommand } from "../../command.ts";
import { formatBytes } from "../../format.ts";
import { ARCHIVE, openNamedArchive } from "./archive-file.ts";

/** Lines written at once. */
const BATCH = 1000;

export const checkpointLs = defineCommand({
  name: "checkpoint ls",
  summary: "List the files in a checkpoint",
  description: `
Lists the members of an archive; with --recursive the files in its nested tars too (changed files, volumes, /dev/shm), as
rootfs-diff.tar/etc/passwd. Of a plain archive only headers are read.
`,
  arguments: [ARCHIVE],
  options: {
    recursive: { type: "flag", short: "R", help: "Files in nested tars too" },
    long: { type: "flag", short: "l", help: "With type, permissions, owner and size" },
  },
  examples: [
    { command: "shale checkpoint ls web.tar", help: "Members" },
    { command: "shale checkpoint ls -lR web.tar", help: "All files, with their sizes" },
  ],
  async run(context) {
    const { values, stdout, signal, json } = context;
    const { listArchive } = await import("../../../checkpoint/show/index.ts");
    await using archive = await openNamedArchive(context.positionals[0]!, signal);
    // names are bytes: a terminal gets them escaped, a program as they are
    const show = (name: string) => (stdout.columns === undefined ? name : fromUtf8(displayBytes(name)));
    let separator = "\n";
    const line = (file: ListedFile) => {
      if (json) {
        const text = `${separator}  ${JSON.stringify(describeListed(file))}`;
        separator = ",\n";
        return text;
      }
      const name = show(
        file.entry.linkTarget === "" || !values.long ? file.path : `${file.path} -> ${file.entry.linkTarget}`,
      );
      return values.long ? `${formatListed(file)} ${name}\n` : `${name}\n`;
    };
    const write = async (text: string) => await stdout.write(json ? text : bytesOf(text));
    let text = json ? '{ "files": [' : "";
    let count = 0;
    for await (const file of listArchive(archive, { nested: values.recursive })) {
      text += line(file);
      if (++count % BATCH !== 0) continue;
      await write(text);
      text = "";
      signal.throwIfAborted();
    }
    await write(json ? `${text}\n] }\n` : text);
    return undefined;
  },
});

export function describeListed({ path, section, entry, stored }: ListedFile): object {
  const { type, mode, uid, gid, size, mtimeSeconds, mtimeNanoseconds, linkTarget } = entry;
  return {
    path: displayBytes(path),
    section,
    type,
    mode: mode.toString(8).padStart(4, "0"),
    ...{ uid, gid, size, stored, mtimeSeconds, mtimeNanoseconds },
    ...(linkTarget === "" ? {} : { linkTarget: displayBytes(linkTarget) }),
  };
}

const TYPE_LETTERS = {
  file: "-",
  directory: "d",
  symlink: "l",
  hardlink: "h",
  character: "c",
  block: "b",
  fifo: "p",
} as const;

export function formatListed({ entry, stored }: ListedFile): string {
  const owner = `${entry.uid}:${entry.gid}`;
  return `${TYPE_LETTERS[entry.type]}${entry.mode.toString(8).padStart(4, "0")} ${owner.padEnd(9)} ${formatBytes(stored).padStart(8)}`;
}
