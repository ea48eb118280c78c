import { join, resolve } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import type {
  DiskOptions,
  ExportedDisk,
  ExportSource,
  Instruction,
  KataVolume,
  TarfsExport,
} from "../../export/index.ts";
import type { TocDifference } from "../../images/complete.ts";
import { displayName } from "../../images/find.ts";
import type { ManifestRecord, Store, StoreOperation } from "../../store/index.ts";
import { type Context, defineCommand, type ValuesOf } from "../command.ts";
import { formatBytes } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { type ExportMeter, exportMeter } from "./export-progress.ts";
import { PLATFORM, REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";
import { VERITY } from "./verity-options.ts";

const FORMATS = ["disk", "tarfs", "kata", "composefs", "tar", "ext4"] as const;
type Format = (typeof FORMATS)[number];

const OPTIONS = {
  platform: PLATFORM,
  format: { type: "string", short: "f", value: "FORMAT", choices: FORMATS, default: "disk", help: "What is made" },
  output: {
    type: "string",
    short: "o",
    value: "PATH",
    completes: "file",
    defaultText: "named after the image, in the working directory",
    help: "File to write, or directory for tarfs and composefs; - writes a tar to stdout",
  },
  layer: { type: "number", value: "N", minimum: 0, help: "Only this layer, counted from 0, the lowest" },
  verity: { type: "flag", help: "Append a dm-verity hash tree" },
  ...VERITY,
  "block-size": {
    type: "string",
    value: "BYTES",
    choices: ["4096", "512"],
    defaultText: "4096",
    help: "Blocks of file system and tree (disk, kata)",
  },
  disks: {
    type: "string",
    value: "WHICH",
    choices: ["none", "layer", "image", "both"],
    defaultText: "both",
    help: "Disks that are made beside tars and boots (tarfs)",
  },
  "volume-type": {
    type: "string",
    value: "TYPE",
    choices: ["image_raw_block", "layer_raw_block", "direct_block"],
    defaultText: "by what is exported",
    help: "Type of the volume (kata)",
  },
  objects: {
    type: "string",
    value: "DIR",
    completes: "directory",
    defaultText: "objects in the output directory",
    help: "Directory of objects, which images may share (composefs)",
  },
  ...REGISTRY,
} as const;

type Values = ValuesOf<typeof OPTIONS>;

/** Which format takes which option; anything else is a mistake on the command line, not something to ignore. */
const TAKES: Readonly<Record<Format, readonly (keyof Values)[]>> = {
  disk: ["layer", "verity", "salt", "uuid", "no-superblock", "jobs", "block-size"],
  kata: ["layer", "verity", "uuid", "jobs", "block-size", "volume-type"],
  tarfs: ["verity", "jobs", "disks"],
  composefs: ["objects"],
  tar: ["layer"],
  ext4: ["layer", "verity", "salt", "uuid", "no-superblock", "jobs"],
};

export const exportCommand = defineCommand({
  name: "export",
  summary: "Write an image as a disk, tarfs, composefs, tar or ext4",
  description: `
Makes files that a virtual machine, a sandbox or another tool mounts without shale. The same image and options give the same
bytes on any machine, so that a root hash can be published and signed; docs/export.md says how.

disk: one EROFS image with everything in it, all layers merged or one of them. With --verity, a hash tree follows that the
kernel checks every read against; FILE.json says everything about it, and the commands that open and mount it are printed.

tarfs: as nydus has it: the raw tar of each layer, EROFS images that point into the tars, and disks of both.
kata: a disk, and the mount option that hands it to Kata Containers. composefs: an image as mkcomposefs makes it, and
its objects. tar: all layers flattened, or with --layer the very tar of that layer. ext4: by mke2fs, for guests without EROFS.

Where the file system can, exports share their blocks with the store and take no space of their own.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", completes: "image" }],
  options: OPTIONS,
  examples: [
    { command: "shale export python:3.12 --verity -o python.erofs", help: "A disk whose every read is verified" },
    { command: "shale export python:3.12 --layer 0", help: "Only the lowest layer" },
    { command: "shale export python:3.12 --format tarfs --verity -o ./tarfs", help: "What nydus-snapshotter keeps" },
    { command: "shale export python:3.12 --format kata --verity", help: "A disk and its mount option" },
    { command: "shale export python:3.12 --format tar -o - | tar t", help: "The flattened tar" },
  ],
  async run(context) {
    const { values, signal } = context;
    const format: Format = values.format;
    checkOptions(format, values);
    const { findImage } = await import("../../images/find.ts");
    await using store = await openStore(context);
    const { image, manifest } = findImage(store, context.positionals[0]!, values.platform);
    using operation = store.begin(`export ${displayName(image.name)}`);
    const needsTars = format === "tarfs" || (format === "tar" && values.layer !== undefined);
    const source = {
      manifest: needsTars ? await withTars(context, store, operation, image.name, manifest) : manifest,
      layer: values.layer,
    };
    const meter = exportMeter(context.progress);
    const output = resolve(values.output ?? defaultOutput(displayName(image.name), format, values.layer));
    let failed = true;
    try {
      await runFormat(format, { context, operation, source, output, meter, signal });
      failed = false;
    } finally {
      meter.end(failed);
    }
    return undefined;
  },
});

/** The same manifest with all layers verified by their diffIds, fetched from where they came where they are not. */
async function withTars(
  { values, log, progress, signal }: Context<typeof OPTIONS>,
  store: Store,
  operation: StoreOperation,
  name: string,
  manifest: ManifestRecord,
): Promise<ManifestRecord> {
  const { completeManifests, formatTocDifference, hostsToComplete } = await import("../../images/complete.ts");
  const { registryAccess } = await import("./registry-access.ts");
  await using registry = registryAccess(values, { log, hosts: () => hostsToComplete(store, [manifest]) });
  const onDifference = (difference: TocDifference) => log.warn(formatTocDifference(difference));
  const options = { registry: registry.client, progress, signal, onDifference };
  const [complete] = await completeManifests(store, operation, name, [manifest], options);
  return complete!;
}

interface Job {
  readonly context: Context<typeof OPTIONS>;
  readonly operation: StoreOperation;
  readonly source: ExportSource;
  readonly output: string;
  readonly meter: ExportMeter;
  readonly signal: AbortSignal;
}

async function runFormat(format: Format, job: Job): Promise<void> {
  const exports = await import("../../export/index.ts");
  const { context, operation, source, output, meter, signal } = job;
  const { values } = context;
  const running = { jobs: values.jobs, signal, progress: meter };
  switch (format) {
    case "disk": {
      const disk = await exports.exportDisk(operation, source, output, { ...(await diskOptions(values)), ...running });
      await printDisk(job, disk, exports.diskInstructions(disk.path, disk.sidecar));
      return;
    }
    case "ext4": {
      const disk = await exports.exportExt4(operation, source, output, { ...(await diskOptions(values)), ...running });
      await printDisk(job, disk, exports.diskInstructions(disk.path, disk.sidecar));
      return;
    }
    case "kata": {
      const options = { ...(await diskOptions(values)), verity: values.verity ? ("bare" as const) : undefined };
      const disk = await exports.exportDisk(operation, source, output, { ...options, ...running });
      const volume = exports.kataVolume(disk.path, disk.sidecar, values["volume-type"]);
      await printKata(job, disk, volume, exports.encodeKataOption(volume));
      return;
    }
    case "tarfs": {
      const { verity, disks = "both" } = values;
      const result = await exports.exportTarfs(operation, source.manifest, output, { ...running, verity, disks });
      await printTarfs(job, result, exports.tarfsInstructions(result), exports.TARFS_LABELS);
      return;
    }
    case "composefs": {
      const image = join(output, "image.cfs");
      const { ensureDirectory } = await import("../../sys/index.ts");
      ensureDirectory(output, 0o755);
      const objects = values.objects === undefined ? undefined : resolve(values.objects);
      const result = await exports.exportComposefs(operation, source.manifest, image, { ...running, objects });
      meter.end();
      await emit(context, result, ({ objectCount, newObjects }) =>
        [
          `${singleLine(result.image)}: composefs image, fs-verity digest ${result.digest}`,
          `${singleLine(result.objects)}: ${objectCount} objects, ${newObjects} of them new`,
          "",
          "Mount:",
          `  mount.composefs -o basedir=${result.objects},digest=${result.digest} ${result.image} /mnt`,
        ].join("\n"),
      );
      return;
    }
    case "tar":
      await writeTar(job, exports.exportTar(operation, source));
  }
}

async function diskOptions(values: Values): Promise<DiskOptions> {
  const { parseSalt, parseUuid } = await import("../../export/index.ts");
  return {
    blockSize: values["block-size"] === "512" ? 512 : 4096,
    verity: values.verity ? (values["no-superblock"] ? "bare" : "superblock") : undefined,
    salt: values.salt === undefined ? undefined : parseSalt(values.salt),
    uuid: values.uuid === undefined ? undefined : parseUuid(values.uuid),
  };
}

async function writeTar(
  { context, operation, source, output, signal }: Job,
  pieces: Iterable<Uint8Array>,
): Promise<void> {
  if (context.values.output === "-") {
    if (context.json) throw new UsageError("Cannot print JSON and a tar on stdout", "name a file with --output");
    for (const piece of pieces) {
      await context.stdout.write(piece);
      signal.throwIfAborted();
    }
    return;
  }
  const { leastTarSize, publishTar } = await import("../../export/index.ts");
  const size = await publishTar(output, pieces, { signal, atLeast: leastTarSize(operation, source) });
  await emit(context, { path: output, size }, (result) => `${singleLine(result.path)}: tar of ${formatBytes(size)}`);
}

async function printDisk(
  { context, meter }: Job,
  disk: ExportedDisk,
  instructions: readonly Instruction[],
): Promise<void> {
  meter.end();
  await emit(context, { ...disk, instructions }, () => formatDisk(disk, instructions));
}

export function formatDisk(disk: ExportedDisk, instructions: readonly Instruction[]): string {
  const { fileSystem, verity, size } = disk.sidecar;
  const lines = [
    `${singleLine(disk.path)}: ${fileSystem.type} of ${formatBytes(size)}${disk.shared ? ", made by another process just now" : ""}`,
  ];
  if (verity !== undefined) lines.push(`root hash ${verity.rootHash}`);
  return [...lines, "", ...formatInstructions(instructions)].join("\n");
}

function formatInstructions(instructions: readonly Instruction[]): string[] {
  return instructions.flatMap(({ title, command }) => [`${title}:`, ...command.split("\n").map((line) => `  ${line}`)]);
}

async function printKata(
  { context, meter }: Job,
  disk: ExportedDisk,
  volume: KataVolume,
  option: string,
): Promise<void> {
  meter.end();
  await emit(context, { ...disk, volume, option }, () =>
    [formatDisk(disk, []).trimEnd(), JSON.stringify(volume), "", "Mount option:", `  ${option}`].join("\n"),
  );
}

async function printTarfs(
  { context, meter }: Job,
  result: TarfsExport,
  instructions: readonly Instruction[],
  labels: Readonly<Record<"layerDisk" | "imageDisk", string>>,
): Promise<void> {
  meter.end();
  await emit(context, { ...result, instructions }, () => {
    const lines = result.layers.flatMap(({ tar, boot, disk }) => [
      singleLine(tar),
      singleLine(boot),
      ...(disk === undefined ? [] : [singleLine(disk.path), `  ${labels.layerDisk}="${disk.label}"`]),
    ]);
    lines.push(singleLine(result.boot));
    if (result.disk !== undefined) {
      lines.push(singleLine(result.disk.path), `  ${labels.imageDisk}="${result.disk.label}"`);
    }
    return [...lines, "", ...formatInstructions(instructions)].join("\n");
  });
}

function checkOptions(format: Format, values: Values): void {
  const common: readonly string[] = ["platform", "format", "output", ...Object.keys(REGISTRY)];
  for (const name of Object.keys(OPTIONS) as (keyof Values)[]) {
    if (common.includes(name) || TAKES[format].includes(name)) continue;
    const value = values[name];
    if (value !== undefined && value !== false) {
      const takers = FORMATS.filter((each) => TAKES[each].includes(name));
      throw new UsageError(`Cannot use --${name} with --format ${format}`, `it is for ${takers.join(", ")}`);
    }
  }
  if (!values.verity && (values.salt !== undefined || values["no-superblock"])) {
    throw new UsageError("Cannot use --salt or --no-superblock without a tree", "add --verity");
  }
  if (values.output === "-" && format !== "tar")
    throw new UsageError(`Cannot write ${format} to stdout`, "name a file");
}

const EXTENSIONS: Readonly<Record<Format, string>> = {
  disk: ".erofs",
  kata: ".erofs",
  tarfs: ".tarfs",
  composefs: ".composefs",
  tar: ".tar",
  ext4: ".ext4",
};

/** "python-3.12.erofs" for docker.io/library/python:3.12. */
export function defaultOutput(name: string, format: Format, layer: number | undefined): string {
  const last = name.split("/").at(-1)!;
  const plain = last
    .replace(/@.*$/, "")
    .replace(/[^A-Za-z0-9._-]+/g, "-")
    .replace(/^[-.]+/, "");
  if (plain === "")
    throw new ShaleError("INVALID_ARGUMENT", `Cannot name a file after ${name}`, { hint: "Use --output" });
  return `${plain}${layer === undefined ? "" : `.layer${layer}`}${EXTENSIONS[format]}`;
}
