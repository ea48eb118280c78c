import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";

/** FAILED_PRECONDITION: a layer that no TOC can tell; the message names the entry. It can be compressed without one. */
export class NotConvertibleError extends ShaleError {
  /** "usr/bin/x": it is sparse */
  readonly reason: string;

  constructor(path: ByteString, why: string) {
    const reason = `"${displayBytes(path.slice(0, 300))}": ${why}`;
    super("FAILED_PRECONDITION", `Cannot write the layer with a table of contents: ${reason}`, {
      hint: "It can be compressed without one",
    });
    this.name = "NotConvertibleError";
    this.reason = reason;
  }
}
