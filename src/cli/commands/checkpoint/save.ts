import { ENGINES } from "../../../checkpoint/save.ts";
import { defineCommand } from "../../command.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { versionInfo } from "../version.ts";
import { LAYOUT, sizeOption } from "./layout-options.ts";
import { describeWrite, formatWrite } from "./write.ts";

export const checkpointSave = defineCommand({
  name: "checkpoint save",
  summary: "Checkpoint a running container into an archive",
  description: `
Finds the container's upper and lower directories and volumes, has its engine checkpoint it with CRIU, and writes the archive as
shale checkpoint write does. The container's processes end.

podman writes neither the root file system nor the archive itself, which is what takes its time; the container stays, and podman
container restore still restores it in place. runc and crun containers need an overlay as their root. containerd is asked by ctr.
`,
  arguments: [{ name: "CONTAINER", help: "Name or id of a running container" }],
  options: {
    output: { type: "string", short: "o", value: "FILE", completes: "file", help: "Archive to write" },
    engine: {
      type: "string",
      value: "ENGINE",
      choices: ENGINES,
      default: "podman",
      help: "What the container runs in",
    },
    program: {
      type: "string",
      value: "PATH",
      defaultText: "podman, ctr, runc or crun",
      completes: "file",
      help: "The engine's program",
    },
    namespace: { type: "string", short: "n", value: "NAME", default: "default", help: "Namespace of containerd" },
    ...LAYOUT,
  },
  examples: [
    { command: "shale checkpoint save web -o web.tar --engine podman", help: "A podman container" },
    { command: "shale checkpoint save web -o web.tar --engine containerd -n k8s.io", help: "One of containerd" },
  ],
  async run(context) {
    const { values, signal } = context;
    const { output, engine, program, namespace } = values;
    if (output === undefined || output === "-") {
      throw new UsageError("Cannot save a checkpoint: --output is missing", "-o FILE, beside the container's storage");
    }
    const alignment = sizeOption("align", values.align);
    const alignFrom = sizeOption("align-from", values["align-from"]);
    const { saveCheckpoint } = await import("../../../checkpoint/save.ts");
    const { keepYoungGenerationSmall } = await import("../../../sys/index.ts");
    keepYoungGenerationSmall();
    const result = await saveCheckpoint(context.positionals[0]!, {
      ...{ output, engine, namespace, signal },
      compression: values.compress,
      digestData: values["digest-data"],
      writer: `shale ${versionInfo().shale}`,
      ...(program === undefined ? {} : { program }),
      ...(alignment === undefined ? {} : { alignment }),
      ...(alignFrom === undefined ? {} : { alignFrom }),
    });
    for (const notice of result.notices) context.log.warn(notice);
    await emit(context, describeWrite(output, result), () => formatWrite(output, result));
    return undefined;
  },
});
