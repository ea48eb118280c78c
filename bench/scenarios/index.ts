import { ShaleError } from "../../src/errors/index.ts";
import { checkpoint } from "./checkpoint.ts";
import { checkout } from "./checkout.ts";
import { exports } from "./export.ts";
import { images } from "./images.ts";
import { memory } from "./memory.ts";
import { partial } from "./partial.ts";
import { pull } from "./pull.ts";
import { read } from "./read.ts";
import { rm } from "./rm.ts";
import type { Scenario } from "./scenario.ts";
import { snapshotter } from "./snapshotter.ts";
import { space } from "./space.ts";

/** In the order they run and are reported. */
export const SCENARIOS: readonly Scenario[] = [
  pull,
  memory,
  space,
  rm,
  images,
  read,
  exports,
  partial,
  checkout,
  checkpoint,
  snapshotter,
];

/** Throws INVALID_ARGUMENT for an unknown id. */
export function scenariosNamed(ids: readonly string[]): Scenario[] {
  return ids.map((id) => {
    const found = SCENARIOS.find((scenario) => scenario.id === id);
    if (found) return found;
    throw new ShaleError("INVALID_ARGUMENT", `Cannot run scenario "${id}": there is none of that name`, {
      hint: `One of ${SCENARIOS.map((scenario) => scenario.id).join(", ")}`,
    });
  });
}
