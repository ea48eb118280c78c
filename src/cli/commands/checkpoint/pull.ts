import type { PulledCheckpoint } from "../../../checkpoint/transport/index.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { formatBytes } from "../../format.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { REGISTRY } from "../options.ts";

export const checkpointPull = defineCommand({
  name: "checkpoint pull",
  summary: "Fetch a checkpoint image from a registry as an archive",
  description: `
Gives back the archive that was pushed, bit for bit, as a plain tar of mode 0600. Images that podman made (checkpoint
--create-image), that checkpointctl built, or that CRI-O and containerd restore from are taken too. Everything is verified before
the file gets its name; a command that failed leaves nothing.
`,
  arguments: [{ name: "REF", help: "Image to fetch: host/name:tag, or by digest as name@sha256" }],
  options: {
    output: { type: "string", short: "o", value: "FILE", completes: "file", help: "Archive to write" },
    ...REGISTRY,
  },
  examples: [{ command: "shale checkpoint pull -o web.tar registry.example/checkpoints/web:1", help: "Into web.tar" }],
  async run(context) {
    const { values, log, progress, signal } = context;
    const { output } = values;
    if (output === undefined) throw new UsageError("Cannot pull: --output is missing", "-o FILE");
    const name = context.positionals[0]!;
    const { parseReference } = await import("../../../oci/index.ts");
    const reference = parseReference(name.replace(/^docker:\/\//, ""));
    const { registryAccess } = await import("../registry-access.ts");
    const { pullCheckpoint } = await import("../../../checkpoint/transport/index.ts");
    await using registry = registryAccess(values, { log, hosts: () => [reference.host] });
    const task = progress.start(name, { label: "pull" });
    try {
      const pulled = await pullCheckpoint(await registry.client(), reference, output, {
        signal,
        onBytes: (count) => task.advance(count),
      });
      task.done();
      await emit(context, { output, ...pulled }, () => formatPulled(output, pulled));
    } catch (error) {
      task.fail();
      throw error;
    }
    return undefined;
  },
});

/** "web.tar: checkpoint of web, 1.2 GB (300 MB received)". */
export function formatPulled(output: string, { name, size, received }: PulledCheckpoint): string {
  return `${singleLine(output)}: checkpoint of ${singleLine(name)}, ${formatBytes(size)} (${formatBytes(received)} received)\n`;
}
