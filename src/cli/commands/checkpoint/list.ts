import type { StoredCheckpoint } from "../../../checkpoint/vault/index.ts";
import { displayName } from "../../../images/find.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { formatBytes, formatTable, formatTime } from "../../format.ts";
import { emit } from "../../output.ts";
import { openStore } from "../store-access.ts";

export const checkpointList = defineCommand({
  name: "checkpoint list",
  summary: "List the checkpoints in the store",
  description: `
SIZE is that of the archive; STORED what this checkpoint added to the store beyond what was there. shale rm removes one.
`,
  arguments: [],
  options: {},
  examples: [{ command: "shale checkpoint list", help: "All checkpoints" }],
  async run(context) {
    const { listCheckpoints } = await import("../../../checkpoint/vault/index.ts");
    await using store = await openStore(context);
    await emit(context, { checkpoints: listCheckpoints(store) }, ({ checkpoints }) => formatCheckpoints(checkpoints));
    return undefined;
  },
});

export function formatCheckpoints(checkpoints: readonly StoredCheckpoint[]): string {
  return formatTable(
    [
      { header: "NAME", cell: ({ name }) => singleLine(displayName(name)) },
      { header: "CONTAINER", cell: ({ container }) => singleLine(container) },
      { header: "IMAGE", cell: ({ image }) => (image === undefined ? "-" : singleLine(displayName(image))) },
      { header: "SIZE", cell: ({ size }) => formatBytes(size), align: "right" },
      { header: "STORED", cell: ({ stored }) => formatBytes(stored), align: "right" },
      { header: "IMPORTED", cell: ({ createdAt }) => formatTime(createdAt) },
    ],
    checkpoints,
  );
}
