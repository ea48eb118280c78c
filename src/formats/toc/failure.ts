import type { ErrorCode } from "../../errors/index.ts";
import { FormatError } from "../../errors/index.ts";

/** The format's name in messages. */
export type TocSource = "zstd:chunked" | "eStargz" | "TOC" | "tar-split";

/** "Cannot read TOC: size of "usr/bin/x" at byte 1536: ..."; `offset` counts from the start of the decompressed document. */
export function tocError(
  source: TocSource,
  field: string,
  problem: string,
  options: {
    readonly offset?: number;
    readonly code?: ErrorCode;
    readonly cause?: unknown;
    readonly hint?: string;
  } = {},
): FormatError {
  return new FormatError(source, field, problem, options);
}
