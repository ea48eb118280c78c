/** `shale daemon check`: what it prints. */
import type { CheckReport, Config, Finding } from "../../daemon/index.ts";
import { EXIT } from "../command.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import type { DaemonContext } from "./daemon.ts";

/** Exit code 1 when something would not work. */
export async function checkDaemon(context: DaemonContext, config: Config): Promise<number> {
  const { checkMachine } = await import("../../daemon/index.ts");
  const { values, signal } = context;
  const report = await checkMachine(config, {
    containerd: values.containerd,
    containerdConfig: values["containerd-config"],
    signal,
  });
  await emit(context, report, formatCheck);
  return report.findings.some(({ state }) => state === "problem") ? EXIT.failure : EXIT.ok;
}

const WORDS: Readonly<Record<Finding["state"], string>> = {
  ok: "ok",
  note: "note",
  warning: "warning",
  problem: "PROBLEM",
};

/** A line for each finding, what to do below it, and at the end the lines to add. */
export function formatCheck({ findings, containerdLines, containerdConfig }: CheckReport): string {
  const lines = findings.flatMap(({ state, text, fix }) => {
    const first = `${WORDS[state].padEnd(8)} ${singleLine(text)}`;
    return fix === undefined ? [first] : [first, `${" ".repeat(9)}-> ${singleLine(fix)}`];
  });
  if (containerdLines !== undefined) {
    lines.push("", `Lines for ${containerdConfig}, where it does not have them:`, "", containerdLines.trimEnd());
  }
  return `${lines.join("\n")}\n`;
}
