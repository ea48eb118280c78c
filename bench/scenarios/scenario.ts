import type { Contestant } from "../contestants/index.ts";
import type { Environment } from "../environment.ts";
import type { Findings } from "../report.ts";

export interface ScenarioOptions {
  /** Runs of each contestant; medians are reported. */
  readonly rounds: number;
  readonly contestants: readonly Contestant[];
  /** One line of progress, for stderr. */
  readonly log: (line: string) => void;
}

export interface Scenario {
  /** For `--only`; one word. */
  readonly id: string;
  readonly summary: string;
  run(environment: Environment, options: ScenarioOptions): Promise<Findings>;
}
