/**
 * Progress on stderr: bars where it is a terminal, lines where it is a file or a pipe, nothing with --quiet. Log
 * messages go through the same door, so that they never tear a bar apart.
 */
import type { Progress } from "../../images/progress.ts";
import { createBars } from "./bars.ts";
import { createLines } from "./lines.ts";

export interface ProgressConsole extends Progress {
  /** Writes one line (without its end), above the bars if there are any. */
  note(line: string): void;
  /** Draws the last state and gives the terminal back. Work that was not ended is left as it stands. */
  close(): void;
}

export interface ProgressStream {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export type ProgressKind = "bars" | "lines" | "silent";

export function createProgress(
  kind: ProgressKind,
  stream: ProgressStream & NodeJS.WritableStream,
  options: { readonly unicode: boolean; readonly now?: () => number },
): ProgressConsole {
  const now = options.now ?? (() => performance.now());
  if (kind === "bars") return createBars(stream, { unicode: options.unicode, now });
  return createLines(stream, { silent: kind === "silent", now });
}
