import { displayBytes } from "../../../bytes/index.ts";
import type { ConvertResult, ConvertTarget } from "../../../checkpoint/convert/index.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { countOf, formatBytes } from "../../format.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { versionInfo } from "../version.ts";
import { LAYOUT, sizeOption } from "./layout-options.ts";

const TARGETS = ["podman", "crio", "containerd", "inline"] as const satisfies readonly ConvertTarget[];

export const checkpointConvert = defineCommand({
  name: "checkpoint convert",
  summary: "Convert a checkpoint to the layout of another engine",
  description: `
podman and CRI-O keep the changed files in rootfs-diff.tar and the deletions in deleted.files; containerd keeps a compressed layer
with whiteouts, and status.dump; inline has the changed files as members of the archive. The layout of IN is found out.

Memory, images of CRIU, volumes and file contents pass unchanged. What the other engine has no place for, will not use, or what had
to be made up is reported on stderr, and refused with --strict. OUT has mode 0600 and appears when it is complete and durable.
`,
  arguments: [
    { name: "IN", help: "Checkpoint archive, or - for stdin", completes: "file" },
    { name: "OUT", help: "Archive to write, or - for stdout", completes: "file" },
  ],
  options: {
    to: { type: "string", value: "LAYOUT", choices: TARGETS, help: "Layout to write" },
    ...LAYOUT,
    strict: { type: "flag", help: "Refuse to leave anything out or to make anything up" },
  },
  examples: [
    {
      command: "shale checkpoint convert --to containerd web.tar web-k8s.tar",
      help: "From podman to Kubernetes with containerd",
    },
    { command: "shale checkpoint convert --to podman --strict pod.tar web.tar", help: "Only when nothing is lost" },
  ],
  async run(context) {
    const { values, positionals, signal, stdout, log } = context;
    const [input, output] = positionals as readonly [string, string];
    if (values.to === undefined)
      throw new UsageError("Cannot convert: --to is missing", `one of ${TARGETS.join(", ")}`);
    const toStdout = output === "-";
    if (toStdout && stdout.columns !== undefined) {
      throw new UsageError("Cannot convert: stdout is a terminal", "redirect it, or name a file");
    }
    const alignment = sizeOption("align", values.align);
    const alignFrom = sizeOption("align-from", values["align-from"]);
    const { convertCheckpoint } = await import("../../../checkpoint/convert/index.ts");
    const result = await convertCheckpoint(input, values.to, {
      output: toStdout ? async (bytes) => await stdout.write(bytes) : output,
      compression: values.compress,
      digestData: values["digest-data"],
      strict: values.strict,
      writer: `shale ${versionInfo().shale}`,
      signal,
      ...(alignment === undefined ? {} : { alignment }),
      ...(alignFrom === undefined ? {} : { alignFrom }),
    });
    for (const notice of result.notices) log.warn(notice);
    if (!toStdout) await emit(context, describeConverted(output, result), () => formatConverted(output, result));
    return undefined;
  },
});

export function describeConverted(output: string, { sections, ...rest }: ConvertResult): object {
  const described = sections.map(({ section: { kind, name }, size, files }) => ({
    kind,
    name: displayBytes(name),
    size,
    files,
  }));
  return { output, ...rest, sections: described };
}

/** "web.tar: podman to containerd, 12 MB, 2 deletions". */
export function formatConverted(output: string, { from, to, written, deleted, opaque }: ConvertResult): string {
  const marks = [
    ...(deleted > 0 ? [countOf(deleted, "deletion")] : []),
    ...(opaque > 0 ? [countOf(opaque, "opaque directory", "opaque directories")] : []),
  ];
  const source = from === "unknown" ? "an archive without changes" : from;
  return `${singleLine(output)}: ${source} to ${to}, ${[formatBytes(written), ...marks].join(", ")}\n`;
}
