/** Options of all commands that write checkpoint archives. */
import { UsageError } from "../../usage.ts";

export const LAYOUT = {
  compress: {
    type: "string",
    value: "KIND",
    choices: ["none", "zstd", "gzip"],
    default: "none",
    help: "Compression of the whole archive; none can share data with its source",
  },
  align: {
    type: "string",
    value: "SIZE",
    defaultText: "the block of the output's file system",
    help: "Where file content begins: multiples of this; 512 for no alignment",
  },
  "align-from": { type: "string", value: "SIZE", defaultText: "16KiB", help: "Smallest file that is aligned" },
  "digest-data": { type: "flag", help: "Digest all data, also what need not be read: verify can check it then" },
} as const;

/** "64KiB", "4096". */
export function sizeOption(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const match = /^(\d{1,12})(?:(K|M)(?:iB)?)?$/i.exec(text);
  if (match === null) throw new UsageError(`Cannot read --${name}: ${text} is no size`, `write --${name} 16KiB`);
  const unit = match[2] === undefined ? 1 : match[2].toUpperCase() === "K" ? 1024 : 1024 * 1024;
  return Number(match[1]) * unit;
}

/** "NAME=DIR" options. */
export function parsePairs(
  option: string,
  texts: readonly string[],
): { readonly name: string; readonly directory: string }[] {
  return texts.map((text) => {
    const equals = text.indexOf("=");
    if (equals > 0 && equals < text.length - 1) {
      return { name: text.slice(0, equals), directory: text.slice(equals + 1) };
    }
    throw new UsageError(`Cannot read --${option}: ${text} is not NAME=DIR`, `write --${option} data=/mnt/data`);
  });
}
