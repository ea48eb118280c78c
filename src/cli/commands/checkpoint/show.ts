import { displayBytes } from "../../../bytes/index.ts";
import type { CheckpointSurvey, SectionSize } from "../../../checkpoint/show/index.ts";
import type { Process } from "../../../formats/criu/index.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import {
  type Column,
  countOf,
  formatBytes,
  formatCount,
  formatDuration,
  formatFields,
  formatTable,
} from "../../format.ts";
import { emit } from "../../output.ts";
import { ARCHIVE, openNamedArchive } from "./archive-file.ts";

export const checkpointShow = defineCommand({
  name: "checkpoint show",
  summary: "Show the container and processes of a checkpoint",
  description: `
What an archive of podman, CRI-O, containerd, kubelet or shale says of itself: container, image, engine and runtime, the
processes with their memory, and the size of each section. Nothing is extracted.

Of a plain archive, and of one that shale compressed with zstd, only headers and metadata are read, whatever its size. Any
other compressed archive is read until the container is known; --full reads on, for the processes and sections behind.
`,
  arguments: [ARCHIVE],
  options: {
    full: { type: "flag", help: "Read a compressed archive to its end" },
  },
  examples: [
    { command: "shale checkpoint show web.tar", help: "A checkpoint of podman" },
    { command: "shale checkpoint show --json /var/lib/kubelet/checkpoints/checkpoint-web.tar", help: "For a program" },
  ],
  async run(context) {
    const { surveyArchive } = await import("../../../checkpoint/show/index.ts");
    await using archive = await openNamedArchive(context.positionals[0]!, context.signal);
    const survey = await surveyArchive(archive, { full: context.values.full });
    await emit(context, describeSurvey(survey), () => formatSurvey(survey));
    return undefined;
  },
});

/** Without what serves only to read memory. Names become text: bytes that are not UTF-8 as \xNN. */
export function describeSurvey({ tree, ...rest }: CheckpointSurvey): object {
  return {
    ...rest,
    sections: rest.sections.map((section) => ({ ...section, name: displayBytes(section.name) })),
    architecture: tree.architecture,
    hostname: tree.hostname === undefined ? undefined : displayBytes(tree.hostname),
    criuImageVersion: tree.imageVersion,
    processes: tree.processes.map(({ pagemap, ...process }) => ({
      ...process,
      comm: textOf(process.comm),
      executable: textOf(process.executable),
      arguments: process.arguments?.map(displayBytes),
    })),
  };
}

const textOf = (text: string | undefined) => (text === undefined ? undefined : displayBytes(text));

const ENGINES: Readonly<Record<string, string>> = { crio: "CRI-O", "cri-o": "CRI-O", unknown: "unknown" };

export function formatSurvey(survey: CheckpointSurvey): string {
  const { container, spec, tree, statistics, networks } = survey;
  const engine = spec.engine ?? survey.dialect;
  const plain = survey.dialect === "unknown" || survey.dialect === engine.replace("-", "");
  const layout = plain ? "" : `, ${ENGINES[survey.dialect] ?? survey.dialect} layout`;
  const image = [container.image, container.imageReference ?? container.imageId]
    .filter((one) => one !== undefined)
    .map(singleLine);
  const pod = spec.pod === undefined ? [] : [spec.pod.namespace, spec.pod.name].filter((one) => one !== undefined);
  const optional = (label: string, value: string | undefined) =>
    value === undefined ? [] : [[label, singleLine(value)] as const];
  const fields = formatFields([
    ...optional("container", container.name),
    ...optional("id", container.id),
    ...optional("image", image.length === 0 ? undefined : image.length === 1 ? image[0] : `${image[0]} (${image[1]})`),
    ["engine", singleLine(`${ENGINES[engine] ?? engine}${layout}`)],
    ...optional("runtime", container.runtime),
    ...optional("pod", pod.length === 0 ? undefined : pod.join("/")),
    ...optional("command", spec.command?.join(" ")),
    ...optional("architecture", tree.architecture),
    ...optional("created", container.created),
    ...optional("checkpointed", container.checkpointed),
    ...Object.entries(networks).map(
      ([name, addresses]) => ["network", singleLine(`${name} ${addresses.join(" ")}`)] as const,
    ),
    ...(survey.deleted === undefined ? [] : [["deleted", countOf(survey.deleted, "path")] as const]),
    ...(statistics === undefined ? [] : [["frozen", formatDuration(statistics.frozenUs / 1000)] as const]),
    ["compression", survey.compression],
  ]);
  const parts = [fields];
  if (tree.processes.length > 0) parts.push(formatProcesses(tree.processes));
  parts.push(formatSections(survey.sections, survey.complete));
  if (!survey.complete) parts.push("The archive is compressed: what follows was not read (--full does).\n");
  return parts.map((part) => part.trimEnd()).join("\n\n");
}

const PROCESS_COLUMNS: readonly Column<Process & { readonly depth: number }>[] = [
  { header: "PID", cell: (process) => String(process.pid), align: "right" },
  { header: "UID", cell: (process) => (process.uid === undefined ? "-" : String(process.uid)), align: "right" },
  { header: "THREADS", cell: (process) => formatCount(process.threads), align: "right" },
  { header: "MEMORY", cell: (process) => formatBytes(process.memory), align: "right" },
  { header: "STATE", cell: (process) => process.state ?? "-" },
  { header: "COMMAND", cell: (process) => `${"  ".repeat(process.depth)}${commandOf(process)}` },
];

/** Longest command line in a table. */
const MAX_COMMAND = 100;
/** Deeper trees are not indented further. */
const MAX_DEPTH = 10;

function formatProcesses(processes: readonly Process[]): string {
  const depths = new Map<number, number>();
  const rows = processes.map((process) => {
    const depth = Math.min(MAX_DEPTH, (depths.get(process.ppid) ?? -1) + 1);
    depths.set(process.pid, depth);
    return { ...process, depth };
  });
  return formatTable(PROCESS_COLUMNS, rows);
}

function commandOf({ arguments: line, executable, comm }: Process): string {
  const text = displayBytes(line?.join(" ") ?? executable ?? comm ?? "?");
  return text.length > MAX_COMMAND ? `${text.slice(0, MAX_COMMAND)}...` : text;
}

const TITLES: Readonly<Record<string, string>> = {
  config: "container config",
  spec: "runtime spec",
  network: "network",
  status: "containerd status",
  deleted: "deleted files",
  mounts: "bind mounts",
  pod: "pod",
  stats: "statistics",
  log: "logs",
  images: "processes and memory",
  "pre-images": "pre-dump",
  shm: "/dev/shm",
  rootfs: "changed files",
  "rootfs-inline": "changed files",
  artifacts: "artifacts",
  index: "shale's index",
};

function formatSections(sections: readonly SectionSize[], complete: boolean): string {
  const columns: readonly Column<SectionSize>[] = [
    {
      header: "SECTION",
      cell: ({ kind, name }) =>
        kind === "volume" ? `volume ${displayBytes(name)}` : (TITLES[kind] ?? displayBytes(name)),
    },
    { header: "MEMBERS", cell: ({ members }) => formatCount(members), align: "right" },
    { header: "SIZE", cell: ({ size }) => formatBytes(size), align: "right" },
  ];
  const total = sections.reduce((sum, { size }) => sum + size, 0);
  return complete
    ? `${formatTable(columns, sections).trimEnd()}\n${formatBytes(total)} in all\n`
    : formatTable(columns, sections);
}
