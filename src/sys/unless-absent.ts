import { errnoOf } from "../errors/index.ts";

/** Runs what removes a name; false when there was none. */
export function unlessAbsent(run: () => void): boolean {
  try {
    run();
    return true;
  } catch (error) {
    if (errnoOf(error) === "ENOENT") return false;
    throw error;
  }
}
