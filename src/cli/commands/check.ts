import { displayName } from "../../images/find.ts";
import type { Progress } from "../../images/progress.ts";
import type { RepairedLayer } from "../../images/repair.ts";
import { singleLine } from "../../log/index.ts";
import type { CheckReport, Finding, Store } from "../../store/index.ts";
import { type Context, defineCommand, EXIT } from "../command.ts";
import { countOf, formatBytes, formatDuration } from "../format.ts";
import { emit } from "../output.ts";
import { REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";

export const check = defineCommand({
  name: "check",
  summary: "Verify the store, and repair what is damaged",
  description: `
Compares the database with the files, the checksum of each metadata image, the digest of each file's payload, and the
digest of each rebuilt layer tar. A layer that was pulled in parts and whose tar is not here (eStargz) is compared with its
table of contents instead, chunk by chunk. Changes nothing unless --repair is given. Exit code 1 if anything is damaged and was not
repaired.

--repair fetches only the damaged layers again, from where they came; what can't be fetched is moved to quarantine, and
what is sound is not touched.
`,
  arguments: [],
  options: {
    repair: { type: "flag", help: "Fetch damaged layers again, and quarantine what can't be fetched" },
    fast: { type: "flag", help: "Read no payloads: database, files and checksums only" },
    ...REGISTRY,
  },
  examples: [
    { command: "shale check", help: "Read and verify everything" },
    { command: "shale check --fast", help: "In a moment, without reading payloads" },
    { command: "shale check --repair", help: "Put it right" },
  ],
  async run(context) {
    const { values, progress, signal } = context;
    await using store = await openStore(context);
    const startMs = performance.now();
    const report = await runCheck(store, { quick: values.fast, progress, signal });
    const outcome: CheckOutcome = { report, quick: values.fast, repaired: undefined, remaining: report.findings };
    if (!values.repair || report.findings.length + store.listDamagedLayers().length === 0) {
      return await answer(context, outcome, performance.now() - startMs);
    }
    const { registryAccess } = await import("./registry-access.ts");
    const { repairStore } = await import("../../images/repair.ts");
    await using registry = registryAccess(values, { log: context.log, hosts: () => hostsOfDamaged(store) });
    const repaired = await repairStore(store, report, { registry: registry.client, progress, signal });
    // What is still wrong now: payloads were verified as they came back, so structure is all there is to look at.
    const { findings } = await runCheck(store, { quick: true, progress, signal });
    return await answer(context, { ...outcome, repaired, remaining: findings }, performance.now() - startMs);
  },
});

export interface CheckOutcome {
  readonly report: CheckReport;
  readonly quick: boolean;
  /** Undefined where nothing was to be repaired, or --repair was not given. */
  readonly repaired: readonly RepairedLayer[] | undefined;
  /** Of the report's findings, or of the check after the repair. */
  readonly remaining: readonly Finding[];
}

async function runCheck(
  store: Store,
  options: { readonly quick: boolean; readonly progress: Progress; readonly signal: AbortSignal },
): Promise<CheckReport> {
  using operation = store.begin("check");
  const { quick, progress, signal } = options;
  if (quick) return await operation.check({ quick, signal });
  const task = progress.start("check", { label: "verifying", total: operation.checkSize() });
  try {
    const report = await operation.check({ signal, onBytes: task.advance });
    task.done();
    return report;
  } catch (error) {
    task.fail();
    throw error;
  }
}

/** Registries that damaged layers came from. */
function hostsOfDamaged(store: Store): string[] {
  const locations = store.listDamagedLayers().flatMap((diffId) => store.sourcesOf(diffId));
  return locations.flatMap(({ location }) => /^docker:\/\/([^/]+)/.exec(location)?.[1] ?? []);
}

async function answer(context: Pick<Context, "json" | "stdout">, outcome: CheckOutcome, elapsedMs: number) {
  const { report, quick, repaired, remaining } = outcome;
  const sound = remaining.length === 0;
  await emit(context, { sound, quick, ...report, repaired, remaining, elapsedMs }, () =>
    formatOutcome(outcome, elapsedMs),
  );
  return sound ? EXIT.ok : EXIT.failure;
}

/** The order in which findings are told: what users lose first. */
const KINDS: readonly Finding["kind"][] = [
  "image",
  "snapshot",
  "layer",
  "payload",
  "document",
  "merged image",
  "index row",
  "link source",
  "stray file",
];
/** Findings of a kind that are shown; --json has all. */
const SHOWN = 20;

export function formatOutcome(outcome: CheckOutcome, elapsedMs: number): string {
  const { report, quick, repaired, remaining } = outcome;
  const { layers, layersByToc, payloads, bytes } = report;
  const read = quick ? "no payload was read" : `${countOf(payloads, "payload")}, ${formatBytes(bytes)} hashed`;
  const byToc =
    layersByToc === 0 ? "" : ` (${layersByToc} verified by ${layersByToc === 1 ? "its" : "their"} table of contents)`;
  const looked = `checked ${countOf(layers, "layer")}${byToc}, ${read}, in ${formatDuration(elapsedMs)}\n`;
  const found = formatFindings(report.findings);
  const strays = report.findings.filter((finding) => finding.kind === "stray file").length;
  const moved = repaired !== undefined && strays > 0 ? `moved ${countOf(strays, "stray file")} to quarantine\n` : "";
  const fixed = (repaired ?? []).map(formatRepaired).join("") + moved;
  return `${found}${fixed}${looked}${verdict(outcome, remaining)}\n`;
}

function formatFindings(findings: readonly Finding[]): string {
  return KINDS.map((kind) => {
    const ofKind = findings.filter((finding) => finding.kind === kind);
    const lines = ofKind
      .slice(0, SHOWN)
      .map((finding) => `${kind} ${singleLine(subjectOf(finding))}: ${singleLine(finding.problem)}\n`);
    if (ofKind.length > SHOWN) lines.push(`and ${countOf(ofKind.length - SHOWN, `more ${kind}`)}, in --json\n`);
    return lines.join("");
  }).join("");
}

function subjectOf(finding: Finding): string {
  switch (finding.kind) {
    case "image":
      return displayName(finding.name);
    case "snapshot":
      return finding.name;
    case "layer":
      return finding.diffId;
    case "payload":
      return `in blob ${finding.blob} at ${finding.offset}`;
    case "document":
    case "index row":
      return finding.digest;
    case "merged image":
      return finding.id;
    case "link source":
    case "stray file":
      return finding.path;
  }
}

function formatRepaired({ diffId, from, failures }: RepairedLayer): string {
  if (from !== undefined) return `repaired layer ${diffId}: fetched from ${singleLine(from)}\n`;
  return `could not repair layer ${diffId}: ${failures.map(singleLine).join("; ")}\n`;
}

function verdict({ report, repaired }: CheckOutcome, remaining: readonly Finding[]): string {
  if (report.findings.length === 0 && repaired === undefined) return "the store is sound";
  if (remaining.length === 0) return "damage was repaired: the store is sound now";
  const damage = countOf(remaining.length, "finding");
  if (repaired === undefined) return `the store is damaged (${damage}); shale check --repair puts right what it can`;
  return `damage remains (${damage}); pull these images again where they can be had, or remove them`;
}
