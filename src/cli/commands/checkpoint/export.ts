import { displayName } from "../../../images/find.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { formatBytes } from "../../format.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { openStore } from "../store-access.ts";

export const checkpointExport = defineCommand({
  name: "checkpoint export",
  summary: "Write a checkpoint of the store as an archive",
  description: `
Gives back the archive that checkpoint import took, bit for bit, as a plain tar of mode 0600. It is verified while it is
written, and gets its name last. Checkpoint images that shale pull fetched can be exported too.
`,
  arguments: [{ name: "NAME", help: "Checkpoint in the store", completes: "image" }],
  options: {
    output: { type: "string", short: "o", value: "FILE", completes: "file", help: "Archive to write, or - for stdout" },
  },
  examples: [
    { command: "shale checkpoint export web:monday -o web.tar", help: "Into web.tar" },
    { command: "shale checkpoint export web:monday -o - | zstd > web.tar.zst", help: "Compressed" },
  ],
  async run(context) {
    const { values, positionals, progress, signal, stdout } = context;
    const { output } = values;
    if (output === undefined) throw new UsageError("Cannot export: --output is missing", "-o FILE or -o -");
    const toStdout = output === "-";
    if (toStdout && stdout.columns !== undefined) {
      throw new UsageError("Cannot export: stdout is a terminal", "redirect it, or name a file with -o");
    }
    const { exportCheckpoint } = await import("../../../checkpoint/vault/index.ts");
    await using store = await openStore(context);
    const task = progress.start(output, { label: "export" });
    try {
      const exported = await exportCheckpoint(
        store,
        positionals[0]!,
        toStdout ? async (bytes) => await stdout.write(bytes) : output,
        { signal, onBytes: (count) => task.advance(count) },
      );
      task.done();
      const { name, size } = exported;
      if (!toStdout) {
        await emit(
          context,
          { output, ...exported },
          () => `${singleLine(output)}: ${singleLine(displayName(name))}, ${formatBytes(size)}\n`,
        );
      }
    } catch (error) {
      task.fail();
      throw error;
    }
    return undefined;
  },
});
