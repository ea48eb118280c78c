/** JSON as Go's encoding/json writes it, so that our documents are byte for byte those of tools in Go. */
import { type ByteString, displayBytes, toHex } from "../../bytes/index.ts";

/**
 * A JSON string as Go's encoding/json writes it: `<`, `>`, `&` and the line separators are escaped, and of control characters
 * those with a short name take it. RangeError unless the bytes are UTF-8, which Go would silently replace.
 */
export function goString(text: ByteString): string {
  const decoded = utf8Of(text);
  if (decoded === undefined) throw new RangeError(`"${displayBytes(text)}" is not UTF-8`);
  return JSON.stringify(decoded).replace(/[<>&\u2028\u2029\u007f]/g, (c) => {
    return c === "\u007f" ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

/** The text that the bytes are in UTF-8, undefined when they are not. */
export function utf8Of(text: ByteString): string | undefined {
  const bytes = Buffer.from(text, "latin1");
  const decoded = bytes.toString("utf8");
  return Buffer.from(decoded, "utf8").equals(bytes) ? decoded : undefined;
}

/** RFC 3339 with as many digits of the second as are needed, in UTC; undefined for years that it can't tell. */
export function rfc3339(seconds: number, nanoseconds: number): string | undefined {
  if (seconds < YEAR_0 || seconds >= YEAR_10000) return undefined;
  const whole = new Date(seconds * 1000).toISOString().slice(0, 19);
  const fraction = nanoseconds === 0 ? "" : `.${`${nanoseconds}`.padStart(9, "0").replace(/0+$/, "")}`;
  return `${whole}${fraction}Z`;
}

const YEAR_0 = -62_167_219_200;
const YEAR_10000 = 253_402_300_800;

export function sha256Text(digest: Uint8Array): string {
  return `sha256:${toHex(digest)}`;
}
