import { isAbsolute } from "node:path";
import type { RestoreResult } from "../../../checkpoint/restore.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { countOf, formatBytes } from "../../format.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { ARCHIVE, openNamedArchive } from "./archive-file.ts";
import { parsePairs } from "./layout-options.ts";

export const checkpointRestore = defineCommand({
  name: "checkpoint restore",
  summary: "Restore a checkpoint archive into directories",
  description: `
Reads an archive of shale, podman, CRI-O or containerd, of any compression, and makes new directories of it: the upper
directory of the container's overlay, and a bundle with CRIU's images that runc restore and crun restore take. Where archive and
directories are on one file system with reflinks, aligned data is shared and not copied.

Deletions become whiteouts, directories that were removed and made again hide what was in them, and directories that the archive
lacks get owner, permissions and times from the lower directories: name them all, uppermost first.

Everything is made beside its place and gets its name when the whole archive was read and its digests were right. A command
that fails leaves nothing behind.
`,
  arguments: [ARCHIVE],
  options: {
    upper: { type: "string", value: "DIR", completes: "directory", help: "New upper directory; absent, or empty" },
    lower: {
      type: "string",
      value: "DIR",
      multiple: true,
      completes: "directory",
      help: "Lower directory of the overlay; several, uppermost first",
    },
    bundle: { type: "string", value: "DIR", completes: "directory", help: "New bundle: config.json and CRIU's images" },
    volume: {
      type: "string",
      value: "NAME=DIR",
      multiple: true,
      completes: "directory",
      help: "New directory for a volume",
    },
    "ignore-volumes": { type: "flag", help: "Leave out volumes that no directory is named for" },
    shm: {
      type: "string",
      value: "DIR",
      defaultText: "shm in the bundle",
      completes: "directory",
      help: "New /dev/shm",
    },
    run: {
      type: "string",
      value: "RUNTIME",
      help: "Mount the overlay in the bundle and restore the processes with runc or crun (or a path to one)",
    },
    name: { type: "string", value: "ID", defaultText: "as in the archive", help: "Container's id for --run" },
    "verify-data": {
      type: "boolean",
      default: true,
      help: "Read data that could be shared unread, where the archive has a digest of it",
    },
    sync: { type: "flag", help: "Make everything durable before it gets its name" },
  },
  examples: [
    {
      command: "shale checkpoint restore web.tar --upper /mnt/upper --lower /mnt/lower --bundle /mnt/bundle --run crun",
      help: "Into a running container",
    },
    { command: "shale checkpoint restore web.tar --upper ./changes", help: "Only the changed files" },
  ],
  async run(context) {
    const { values, signal } = context;
    const { upper, bundle, shm, run, name } = values;
    const volumes = parsePairs("volume", values.volume);
    if (upper === undefined && bundle === undefined && shm === undefined && volumes.length === 0) {
      throw new UsageError(
        "Cannot restore a checkpoint: there is no place for it",
        "--upper DIR, --bundle DIR or both",
      );
    }
    if (run !== undefined && !["runc", "crun"].includes(run) && !isAbsolute(run)) {
      throw new UsageError(`Cannot read --run: ${run} is no runtime`, "runc, crun or the path of one");
    }
    if (run !== undefined && (bundle === undefined || upper === undefined || values.lower.length === 0)) {
      throw new UsageError(
        "Cannot run a checkpoint: a part of it is missing",
        "--run needs --bundle, --upper and --lower",
      );
    }
    const { restoreCheckpoint } = await import("../../../checkpoint/restore.ts");
    const { keepYoungGenerationSmall } = await import("../../../sys/index.ts");
    keepYoungGenerationSmall();
    const archiveName = context.positionals[0]!;
    await using archive = await openNamedArchive(archiveName, signal);
    const targets = { lower: values.lower, volumes, ...defined({ upper, bundle, shm }) };
    const result = await restoreCheckpoint(archive, targets, {
      ignoreVolumes: values["ignore-volumes"],
      verifyData: values["verify-data"],
      sync: values.sync,
      signal,
    });
    let started: string | undefined;
    if (run !== undefined) {
      const { runCheckpoint } = await import("../../../checkpoint/restore/run.ts");
      started = await runCheckpoint({
        ...{ runtime: run, bundle: bundle!, upper: upper!, lower: values.lower, signal },
        id: name ?? result.container ?? "restored",
      });
    }
    await emit(context, { archive: archiveName, ...result, ...defined({ started }) }, () =>
      formatRestore(archiveName, result, started),
    );
    return undefined;
  },
});

function defined<T extends Readonly<Record<string, string | undefined>>>(values: T): { [K in keyof T]?: string } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: string;
  };
}

/** "web.tar: 25 files, 1.15 GB (1.15 GB shared with the archive), 2 deletions; container web runs". */
export function formatRestore(archive: string, result: RestoreResult, started: string | undefined): string {
  const { files, bytes, cloned, whiteouts, verified } = result;
  const shared = cloned === 0 ? "" : ` (${formatBytes(cloned)} shared with the archive)`;
  const gone = whiteouts === 0 ? "" : `, ${countOf(whiteouts, "deletion")}`;
  const digests = verified.length === 0 ? "" : `; ${countOf(verified.length, "section")} verified`;
  const runs = started === undefined ? "" : `; container ${singleLine(started)} runs`;
  return `${singleLine(archive)}: ${countOf(files, "file")}, ${formatBytes(bytes)}${shared}${gone}${digests}${runs}\n`;
}
