import type { ImportedCheckpoint } from "../../../checkpoint/vault/index.ts";
import { displayName } from "../../../images/find.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { formatBytes } from "../../format.ts";
import { emit } from "../../output.ts";
import { openStore } from "../store-access.ts";
import { parseAnnotations } from "./push.ts";

export const checkpointImport = defineCommand({
  name: "checkpoint import",
  summary: "Keep a checkpoint in the store, in parts that are kept once",
  description: `
Changed files are kept by their content, memory in parts of 64 KiB, zeros as holes: what an image or another checkpoint in the
store has already is not stored again, so the second checkpoint of a container costs what changed since the first. The archive
comes back bit for bit with checkpoint export; of a compressed one, the tar that is in it.

It is an image of the store: df, rm, gc, pin and check know it under its NAME. It can't be mounted.
`,
  arguments: [
    { name: "ARCHIVE", help: "Checkpoint archive, plain or compressed with gzip or zstd", completes: "file" },
    { name: "NAME", help: "Name in the store, else localhost/checkpoints/CONTAINER:DIGITS", optional: true },
  ],
  options: {
    annotation: {
      type: "string",
      value: "KEY=VALUE",
      multiple: true,
      help: "Annotation of the image to add or change",
    },
  },
  examples: [
    {
      command: "shale checkpoint import web.tar",
      help: "Under a name made of the container's and the archive's digest",
    },
    { command: "shale checkpoint import web.tar web:monday", help: "Under a name" },
  ],
  async run(context) {
    const { values, positionals, progress, signal } = context;
    const [path, name] = positionals as readonly [string, string | undefined];
    const { importCheckpoint } = await import("../../../checkpoint/vault/index.ts");
    const { findFile } = await import("../../../sys/index.ts");
    await using store = await openStore(context, { create: true });
    const task = progress.start(path, { label: "import", total: findFile(path)?.size ?? 0 });
    try {
      const imported = await importCheckpoint(store, path, {
        signal,
        annotations: parseAnnotations(values.annotation),
        onBytes: (count) => task.advance(count),
        ...(name === undefined ? {} : { name }),
      });
      task.done();
      await emit(context, imported, () => formatImported(imported));
    } catch (error) {
      task.fail();
      throw error;
    }
    return undefined;
  },
});

/** "web:monday: 1.1 GB, 20 MB new in the store". */
export function formatImported({ name, size, stored, present, compression }: ImportedCheckpoint): string {
  const news = present ? "already in the store" : `${formatBytes(stored)} new in the store`;
  const note = compression === "none" ? "" : ` (the tar in the ${compression} archive)`;
  return `${singleLine(displayName(name))}: ${formatBytes(size)}${note}, ${news}\n`;
}
