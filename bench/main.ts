/**
 * `npm run bench`: runs the scenarios, prints the tables, writes bench/RESULTS.md. What is measured: docs/bench.md.
 *
 * Ctrl-C stops the running step; daemons, mounts and directories are removed before the process ends.
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ShaleError } from "../src/errors/index.ts";
import { CONTESTANTS, contestantsNamed } from "./contestants/index.ts";
import { machineFacts, openEnvironment } from "./environment.ts";
import { holdMemory } from "./host-memory.ts";
import { ensurePeerTree } from "./peer-tree.ts";
import { type Findings, formatMarkdown, formatTerminal, type Report } from "./report.ts";
import { SCENARIOS, scenariosNamed } from "./scenarios/index.ts";

const USAGE = `Usage: npm run bench -- [options]

  --only IDS          scenarios, separated by commas: ${SCENARIOS.map((s) => s.id).join(", ")}
  --contestants IDS   of the pull race: ${CONTESTANTS.map((c) => c.id).join(", ")}
  --runs N            runs of each contestant (default 5)
  --quick             one run of each
  --images DIR        where build-images.sh put the images (default /var/tmp/shale-images; built when missing)
  --work DIR          parent of the work directory: the file system under test (default /var/tmp)
  --output FILE       report (default bench/RESULTS.md; only written by a run of everything unless given)
`;

async function main(signal: AbortSignal): Promise<void> {
  const { values } = parseArgs({
    options: {
      only: { type: "string" },
      contestants: { type: "string" },
      runs: { type: "string", default: "5" },
      quick: { type: "boolean", default: false },
      images: { type: "string", default: "/var/tmp/shale-images" },
      work: { type: "string", default: "/var/tmp" },
      output: { type: "string" },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return;
  }
  const rounds = values.quick ? 1 : Number(values.runs);
  if (!Number.isInteger(rounds) || rounds < 1) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot run ${values.runs} times: a positive whole number is needed`);
  }
  const scenarios = values.only === undefined ? SCENARIOS : scenariosNamed(values.only.split(","));
  const contestants = values.contestants === undefined ? CONTESTANTS : contestantsNamed(values.contestants.split(","));
  const log = (line: string) => process.stderr.write(`${line}\n`);

  await ensurePeerTree();
  await using environment = await openEnvironment({ images: values.images, parent: values.work, signal });
  using memory = await holdMemory();
  const facts: [string, string][] = [...machineFacts(environment.work), ["runs of each", String(rounds)]];
  if (memory.told !== undefined) facts.push(["freed memory", memory.told]);
  for (const contestant of contestants) facts.push([contestant.title, await contestant.version()]);
  const findings: Findings[] = [];
  for (const scenario of scenarios) {
    log(`# ${scenario.summary}`);
    findings.push(await scenario.run(environment, { rounds, contestants, log }));
    signal.throwIfAborted();
  }
  const report: Report = {
    facts,
    goals: findings.flatMap((f) => f.goals),
    tables: findings.flatMap((f) => f.tables),
  };
  process.stdout.write(formatTerminal(report));
  const complete = values.only === undefined && values.contestants === undefined;
  const output = values.output ?? (complete ? join(import.meta.dirname, "RESULTS.md") : undefined);
  if (output !== undefined) writeFileSync(output, formatMarkdown(report));
}

const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) process.on(name, () => stop.abort());
try {
  await main(stop.signal);
} catch (error) {
  if (stop.signal.aborted) {
    process.stderr.write("Stopped on request\n");
    process.exitCode = 130;
  } else if (ShaleError.is(error)) {
    process.stderr.write(`${error.message}\n${error.hint === undefined ? "" : `${error.hint}\n`}`);
    process.exitCode = 1;
  } else {
    throw error;
  }
}
