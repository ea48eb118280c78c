import { type ByteString, displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";

/** FAILED_PRECONDITION: a layer that no TOC can tell; the message names the entry. It can be compressed without one. */
export class NotConvertibleError extends ShaleError {
  constructor(path: ByteString, why: string) {
    const name = displayBytes(path.slice(0, 300));
    super("FAILED_PRECONDITION", `Cannot write the layer with a table of contents: "${name}": ${why}`, {
      hint: "It can be compressed without one",
    });
    this.name = "NotConvertibleError";
  }
}
