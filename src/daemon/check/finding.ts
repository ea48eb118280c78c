/** What a check has found. */

/**
 * "problem": something will not work. "warning": it works, but not as it should. "note": it could be better. "ok": as it should be.
 */
export type FindingState = "ok" | "note" | "warning" | "problem";

export interface Finding {
  readonly topic: "kernel" | "root" | "daemon" | "containerd";
  readonly state: FindingState;
  /** A sentence without its full stop. */
  readonly text: string;
  /** What to do, as a sentence without its full stop. */
  readonly fix?: string;
}
