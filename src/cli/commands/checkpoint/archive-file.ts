/** The archive that a command's argument names. */
import type { CheckpointArchive } from "../../../checkpoint/archive/index.ts";
import type { ArgumentSpec } from "../../command.ts";

export const ARCHIVE: ArgumentSpec = { name: "ARCHIVE", help: "Checkpoint archive, or - for stdin", completes: "file" };

export async function openNamedArchive(name: string, signal: AbortSignal): Promise<CheckpointArchive> {
  const { openArchive, openArchiveStream } = await import("../../../checkpoint/archive/index.ts");
  if (name !== "-") return await openArchive(name, { signal });
  const { readDescriptor } = await import("../../../sys/index.ts");
  return await openArchiveStream(readDescriptor(0, { signal }), "stdin", { signal });
}
