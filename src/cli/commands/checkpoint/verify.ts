import type { Verification, VerifiedSection } from "../../../checkpoint/verify/index.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand, EXIT } from "../../command.ts";
import { type Column, formatTable } from "../../format.ts";
import { emit } from "../../output.ts";
import { ARCHIVE, openNamedArchive } from "./archive-file.ts";

export const checkpointVerify = defineCommand({
  name: "checkpoint verify",
  summary: "Check that a checkpoint archive is whole and unchanged",
  description: `
Reads all of an archive. Sections that shale wrote are compared with the digests that it wrote; "structure" are names, metadata
and small files, where the data went unseen by shale (checkpoint write --digest-data digests it too). Archives of other engines
have no digests: of them it is checked that all tars end where they should, that metadata and CRIU's images can be read, and that
each process has as much memory as its pagemap says. The exit code is 1 when something is wrong.
`,
  arguments: [ARCHIVE],
  options: {},
  examples: [{ command: "shale checkpoint verify web.tar", help: "After it was copied" }],
  async run(context) {
    const { progress, signal } = context;
    const path = context.positionals[0]!;
    const { verifyArchive } = await import("../../../checkpoint/verify/index.ts");
    await using archive = await openNamedArchive(path, signal);
    const total = archive.compression === "none" ? archive.size : undefined;
    const task = progress.start(path, { label: "verify", ...(total === undefined ? {} : { total }) });
    try {
      const found = await verifyArchive(archive, { onBytes: (count) => task.advance(count) });
      task.done();
      await emit(context, found, () => formatVerification(path, found));
      return found.sound ? undefined : EXIT.failure;
    } catch (error) {
      task.fail();
      throw error;
    }
  },
});

const COLUMNS: readonly Column<VerifiedSection>[] = [
  { header: "SECTION", cell: ({ kind, name }) => singleLine(kind === "volume" ? `volume ${name}` : name) },
  { header: "STATE", cell: ({ state, problem }) => (problem === undefined ? state : `${state}: it ${problem}`) },
];

export function formatVerification(path: string, { writer, sections, problems, sound }: Verification): string {
  const table = writer === undefined ? "" : formatTable(COLUMNS, sections);
  const digests =
    writer === undefined ? "it has no digests, and is whole" : `unchanged since ${singleLine(writer)} wrote it`;
  const lines = problems.map((problem) => `${singleLine(problem)}\n`);
  return `${table}${lines.join("")}${singleLine(path)}: ${sound ? digests : "damaged"}\n`;
}
