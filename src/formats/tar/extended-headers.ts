/** What extended headers say about the entry that they stand before: PAX records, GNU long names. Specifications: index.ts. */
import type { ByteString } from "../../bytes/index.ts";
import type { ErrorCode, FormatError } from "../../errors/index.ts";
import { tarError } from "./entry.ts";
import type { TarLimits } from "./limits.ts";
import { decodePax, type PaxHeader } from "./pax.ts";

/** By type flag. "X" is Solaris's name for "x". */
export type ExtendedKind = "x" | "g" | "L" | "K";

const NO_PAX: PaxHeader = {};

/** The kind that a type flag means; undefined for an entry's own. */
export function extendedKindOf(flag: string): ExtendedKind | undefined {
  if (flag === "x" || flag === "g" || flag === "L" || flag === "K") return flag;
  return flag === "X" ? "x" : undefined;
}

/** Collects the headers of one entry, then of the next; global headers stay. */
export class ExtendedHeaders {
  readonly #limits: TarLimits;
  #kind: ExtendedKind = "x";
  #offset = 0;
  /** Of the first header before the entry; -1 when there is none. */
  firstOffset = -1;
  pax: PaxHeader = NO_PAX;
  longName: ByteString | undefined;
  longLink: ByteString | undefined;
  readonly global: PaxHeader = {};

  constructor(limits: TarLimits) {
    this.#limits = limits;
  }

  /** A header of `size` bytes at `offset` of the tar: its body is what `finish` takes next. */
  begin(kind: ExtendedKind, size: number, offset: number): void {
    if (size > this.#limits.metaHeaderSize) {
      throw tarError("extended header", `has ${size} bytes, more than ${this.#limits.metaHeaderSize}`, offset, {
        code: "RESOURCE_EXHAUSTED",
      });
    }
    if (this.#has(kind)) {
      // Readers differ (the last counts, or both): refused, so that the tar can't mean two things.
      throw tarError("extended header", `a second one of type ${kind} for one entry`, offset);
    }
    if (kind !== "g" && this.firstOffset < 0) this.firstOffset = offset;
    this.#kind = kind;
    this.#offset = offset;
  }

  #has(kind: ExtendedKind): boolean {
    if (kind === "x") return this.pax !== NO_PAX;
    return (kind === "L" && this.longName !== undefined) || (kind === "K" && this.longLink !== undefined);
  }

  /** The body: bytes `start` to `stop`. */
  finish(bytes: Buffer, start: number, stop: number): void {
    const fail = (field: string, problem: string, code?: ErrorCode): FormatError =>
      tarError(field, problem, this.#offset, { code });
    switch (this.#kind) {
      case "g":
        decodePax(bytes, start, stop, this.global, true, this.#limits, fail);
        return;
      case "x":
        this.pax = {};
        decodePax(bytes, start, stop, this.pax, false, this.#limits, fail);
        return;
    }
    const nul = bytes.indexOf(0, start);
    const end = nul < 0 || nul > stop ? stop : nul;
    const what = this.#kind === "L" ? "long name" : "long link name";
    if (end === start) throw fail(what, "is empty");
    if (end - start > this.#limits.pathLength) {
      throw fail(what, `has more than ${this.#limits.pathLength} bytes`, "RESOURCE_EXHAUSTED");
    }
    const text = bytes.toString("latin1", start, end);
    if (this.#kind === "L") this.longName = text;
    else this.longLink = text;
  }

  /** The entry has its header: those that follow belong to the next one. */
  clear(): void {
    this.firstOffset = -1;
    this.pax = NO_PAX;
    this.longName = undefined;
    this.longLink = undefined;
  }
}
