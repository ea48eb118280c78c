import { displayBytes } from "../../../bytes/index.ts";
import type { WriteResult } from "../../../checkpoint/write.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { countOf, formatBytes } from "../../format.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { versionInfo } from "../version.ts";
import { LAYOUT, parsePairs, sizeOption } from "./layout-options.ts";

export const checkpointWrite = defineCommand({
  name: "checkpoint write",
  summary: "Write a checkpoint archive from CRIU's images and directories",
  description: `
Writes the archive that podman, CRI-O and checkpointctl know, in one pass and to a pipe as well: metadata first, then CRIU's
images, /dev/shm, volumes and the changes of the root file system. Where the file system has reflinks, data is shared with its
source and not copied; put the archive on the file system of the container for that.

The metadata is a directory (a container's bundle after podman container checkpoint --keep, or what runc checkpoint or criu
wrote), or a tar as podman container checkpoint --ignore-rootfs --compress=none exports it. The upper directory is taken
as it is: whiteouts, opaque directories and metacopy files are understood. With the lower directories, what an opaque directory
hides is told to podman too.

The container must be stopped or paused: a file that changes meanwhile fails the command. The file has mode 0600, since all memory
is in it, and appears under its name when it is complete and durable.
`,
  arguments: [],
  options: {
    output: { type: "string", short: "o", value: "FILE", completes: "file", help: "Archive to write, or - for stdout" },
    meta: {
      type: "string",
      value: "PATH",
      completes: "file",
      help: "Metadata and CRIU's images: a directory or a tar",
    },
    "rootfs-diff": {
      type: "string",
      value: "DIR",
      completes: "directory",
      help: "Upper directory of the container's overlay",
    },
    lower: {
      type: "string",
      value: "DIR",
      multiple: true,
      completes: "directory",
      help: "Lower directory of the overlay; several, uppermost first",
    },
    volume: { type: "string", value: "NAME=DIR", multiple: true, completes: "directory", help: "A volume's content" },
    shm: { type: "string", value: "DIR", completes: "directory", help: "The container's /dev/shm" },
    ...LAYOUT,
  },
  examples: [
    {
      command: "shale checkpoint write -o web.tar --meta /tmp/criu --rootfs-diff /mnt/upper --lower /mnt/lower",
      help: "From what runc checkpoint wrote",
    },
    {
      command: "shale checkpoint write -o - --compress zstd --meta /tmp/criu | ssh host tee web.tar.zst",
      help: "To another machine",
    },
  ],
  async run(context) {
    const { values, signal, stdout } = context;
    const { output, meta } = values;
    if (output === undefined) throw new UsageError("Cannot write a checkpoint: --output is missing", "-o FILE or -o -");
    if (meta === undefined) throw new UsageError("Cannot write a checkpoint: --meta is missing", "--meta DIR or TAR");
    const toStdout = output === "-";
    if (toStdout && stdout.columns !== undefined) {
      throw new UsageError("Cannot write a checkpoint: stdout is a terminal", "redirect it, or name a file with -o");
    }
    const volumes = parsePairs("volume", values.volume);
    const alignment = sizeOption("align", values.align);
    const alignFrom = sizeOption("align-from", values["align-from"]);
    const { writeCheckpoint } = await import("../../../checkpoint/write.ts");
    const { keepYoungGenerationSmall } = await import("../../../sys/index.ts");
    keepYoungGenerationSmall();
    const result = await writeCheckpoint(
      {
        metadata: meta,
        lower: values.lower,
        volumes,
        ...(values["rootfs-diff"] === undefined ? {} : { rootfsDiff: values["rootfs-diff"] }),
        ...(values.shm === undefined ? {} : { shm: values.shm }),
      },
      {
        output: toStdout ? (bytes) => stdout.write(bytes) : output,
        compression: values.compress,
        digestData: values["digest-data"],
        writer: `shale ${versionInfo().shale}`,
        signal,
        ...(alignment === undefined ? {} : { alignment }),
        ...(alignFrom === undefined ? {} : { alignFrom }),
      },
    );
    for (const notice of result.notices) context.log.warn(notice);
    if (!toStdout) await emit(context, describeWrite(output, result), () => formatWrite(output, result));
    return undefined;
  },
});

export function describeWrite(output: string, result: WriteResult): object {
  const { sections, ...rest } = result;
  return {
    output,
    ...rest,
    sections: sections.map(({ section, size, files }) => ({
      kind: section.kind,
      name: displayBytes(section.name),
      size,
      files,
    })),
  };
}

/** "web.tar: 1.2 GB; 1.15 GB shared with its source, 40 kB written". */
export function formatWrite(output: string, { size, written, sections, moved, deleted }: WriteResult): string {
  const sum = sections.reduce((total, each) => total + each.files, 0);
  const compressed = written === size ? "" : `, ${formatBytes(written)} compressed`;
  const ways = [
    [moved.cloned, "shared with the source"],
    [moved.copied, "copied inside the kernel"],
    [size - moved.cloned - moved.copied, "written"],
  ] as const;
  const how = ways.filter(([bytes]) => bytes > 0).map(([bytes, way]) => `${formatBytes(bytes)} ${way}`);
  const gone = deleted === 0 ? "" : `, ${countOf(deleted, "deletion")}`;
  return `${singleLine(output)}: ${formatBytes(size)}${compressed}, ${countOf(sum, "file")}${gone}; ${how.join(", ")}\n`;
}
