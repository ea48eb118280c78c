/**
 * Cuts JSON values out of a stream, so that a document of any size is parsed value by value. RFC 8259.
 *
 * The cutter finds where a value ends from brackets and quotes alone; whether it is JSON, JSON.parse says afterwards.
 * Memory: one value, at most `valueSize` bytes.
 */
import { isUtf8 } from "node:buffer";
import { concatBytes } from "../../bytes/index.ts";
import { type TocSource, tocError } from "./failure.ts";

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const COMMA = 0x2c;
const COLON = 0x3a;
/** No document of these formats nests deeper than 4; JSON.parse is not to be tried with what does. */
const MAX_DEPTH = 32;

export interface JsonValue {
  readonly value: unknown;
  /** Of its first byte in the document. */
  readonly offset: number;
}

/** Where a value begins and ends, over any cutting of the bytes. */
class ValueCutter {
  readonly #source: TocSource;
  readonly #limit: number;
  #parts: Uint8Array[] = [];
  #held = 0;
  #depth = 0;
  #inString = false;
  #escaped = false;
  #literal = false;
  #offset = 0;
  #open = false;

  constructor(source: TocSource, limit: number) {
    this.#source = source;
    this.#limit = limit;
  }

  get isOpen(): boolean {
    return this.#open;
  }

  get offset(): number {
    return this.#offset;
  }

  /** A value begins with this byte, which `take` gets again. */
  begin(offset: number): void {
    this.#open = true;
    this.#offset = offset;
    this.#literal = false;
  }

  /** Takes bytes of the value from `at` on; the end in `bytes` of what belongs to it. `isOpen` is false when it is complete. */
  take(bytes: Uint8Array, at: number): number {
    const end = this.#scan(bytes, at);
    this.#held += end - at;
    if (this.#held > this.#limit) {
      throw tocError(this.#source, "value", `has more than ${this.#limit} bytes`, {
        offset: this.#offset,
        code: "RESOURCE_EXHAUSTED",
      });
    }
    this.#parts.push(this.#open ? new Uint8Array(bytes.subarray(at, end)) : bytes.subarray(at, end));
    return end;
  }

  /** The value that is complete. */
  parse(): JsonValue {
    const bytes = concatBytes(this.#parts);
    this.#parts = [];
    this.#held = 0;
    const offset = this.#offset;
    if (!isUtf8(bytes)) throw tocError(this.#source, "value", "is not UTF-8", { offset });
    try {
      return { value: JSON.parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("utf8")), offset };
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      throw tocError(this.#source, "value", "is not JSON", { offset, cause: error });
    }
  }

  #scan(bytes: Uint8Array, from: number): number {
    const length = bytes.length;
    let at = from;
    while (at < length) {
      if (this.#inString) {
        at = this.#scanString(bytes, at);
        if (this.#inString) return length;
        if (this.#depth === 0) return this.#close(at);
        continue;
      }
      const byte = bytes[at]!;
      if (this.#literal) {
        if (byte === COMMA || byte === CLOSE_OBJECT || byte === CLOSE_ARRAY || isSpace(byte)) return this.#close(at);
        at++;
        continue;
      }
      at++;
      if (byte === QUOTE) this.#inString = true;
      else if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) {
        if (++this.#depth > MAX_DEPTH) {
          throw tocError(this.#source, "value", `nests deeper than ${MAX_DEPTH}`, { offset: this.#offset });
        }
      } else if (byte === CLOSE_OBJECT || byte === CLOSE_ARRAY) {
        if (--this.#depth <= 0) return this.#close(at);
      } else if (this.#depth === 0) this.#literal = true;
    }
    return length;
  }

  /** `at` is inside of a string; behind its closing quote, or at the end of the bytes. */
  #scanString(bytes: Uint8Array, from: number): number {
    const length = bytes.length;
    let at = from;
    if (this.#escaped) {
      this.#escaped = false;
      at++;
    }
    while (at < length) {
      const byte = bytes[at++];
      if (byte === QUOTE) {
        this.#inString = false;
        return at;
      }
      if (byte === BACKSLASH) {
        if (at === length) this.#escaped = true;
        at++;
      }
    }
    return length;
  }

  #close(at: number): number {
    this.#open = false;
    this.#depth = 0;
    return at;
  }
}

/** The values of a sequence of JSON documents, as tar-split is: objects, with nothing but white space between. */
export async function* readJsonSequence(
  pieces: AsyncIterable<Uint8Array>,
  source: TocSource,
  valueSize: number,
): AsyncGenerator<JsonValue, void, undefined> {
  const cutter = new ValueCutter(source, valueSize);
  let base = 0;
  for await (const bytes of pieces) {
    let at = 0;
    while (at < bytes.length) {
      if (!cutter.isOpen) {
        const byte = bytes[at]!;
        if (isSpace(byte)) {
          at++;
          continue;
        }
        if (byte !== OPEN_OBJECT)
          throw tocError(source, "document", "is no sequence of objects", { offset: base + at });
        cutter.begin(base + at);
      }
      at = cutter.take(bytes, at);
      if (!cutter.isOpen) yield cutter.parse();
    }
    base += bytes.length;
  }
  if (cutter.isOpen) throw tocError(source, "document", "ends inside of a value", { offset: base });
}

/** What stands at the top of a document beside the list: small values, whole. */
export interface JsonListDocument {
  /** Elements of the list, in order. */
  readonly elements: AsyncGenerator<JsonValue, void, undefined>;
  /** The other members; complete when `elements` has ended. */
  readonly members: ReadonlyMap<string, unknown>;
}

type ListState =
  | "document"
  | "key"
  | "key or end"
  | "colon"
  | "value"
  | "element"
  | "element or end"
  | "list"
  | "object"
  | "end";

/** Members beside the list that are kept: two are known, and writers may add some. */
const MAX_MEMBERS = 64;

/**
 * One JSON object whose member `list` is a list of objects (or null, as Go writes an empty one), given out element by
 * element; other members are kept whole, each of at most `valueSize` bytes.
 */
export function readJsonList(
  pieces: AsyncIterable<Uint8Array>,
  list: string,
  source: TocSource,
  valueSize: number,
): JsonListDocument {
  const members = new Map<string, unknown>();
  return { elements: listElements(pieces, list, source, valueSize, members), members };
}

async function* listElements(
  pieces: AsyncIterable<Uint8Array>,
  list: string,
  source: TocSource,
  valueSize: number,
  members: Map<string, unknown>,
): AsyncGenerator<JsonValue, void, undefined> {
  const cutter = new ValueCutter(source, valueSize);
  let state: ListState = "document";
  let key = "";
  let listSeen = false;
  let base = 0;
  for await (const bytes of pieces) {
    for (let at = 0; at < bytes.length; ) {
      if (!cutter.isOpen) {
        const byte = bytes[at]!;
        if (isSpace(byte)) {
          at++;
          continue;
        }
        const offset = base + at;
        const next = step(state, byte, key === list);
        if (next === undefined) throw tocError(source, "document", `is not as expected: no ${state} here`, { offset });
        if (next !== "cut") {
          if (state === "value" && key === list) {
            if (listSeen) throw tocError(source, list, "comes twice", { offset });
            listSeen = true;
          }
          state = next;
          at++;
          continue;
        }
        cutter.begin(offset);
      }
      at = cutter.take(bytes, at);
      if (cutter.isOpen) continue;
      const cut = cutter.parse();
      if (state === "key" || state === "key or end") {
        if (typeof cut.value !== "string") throw tocError(source, "key", "is no string", { offset: cut.offset });
        key = cut.value;
        if (members.has(key))
          throw tocError(source, JSON.stringify(key.slice(0, 80)), "comes twice", { offset: cut.offset });
        state = "colon";
      } else if (state === "value") {
        if (key === list && cut.value !== null) throw tocError(source, list, "is no list", { offset: cut.offset });
        if (members.size >= MAX_MEMBERS) throw tocError(source, "document", `has more than ${MAX_MEMBERS} members`);
        if (key === list) listSeen = true;
        members.set(key, cut.value);
        state = "object";
      } else {
        state = "list";
        yield cut;
      }
    }
    base += bytes.length;
  }
  if (state !== "end") throw tocError(source, "document", "ends too early", { offset: base });
  if (!listSeen) throw tocError(source, list, "is missing", { offset: base });
}

/** What the next byte that is not white space leads to; "cut": a value begins with it; undefined: it may not stand here. */
function step(state: ListState, byte: number, inList: boolean): ListState | "cut" | undefined {
  switch (state) {
    case "document":
      return byte === OPEN_OBJECT ? "key or end" : undefined;
    case "key or end":
      if (byte === CLOSE_OBJECT) return "end";
      return byte === QUOTE ? "cut" : undefined;
    case "key":
      return byte === QUOTE ? "cut" : undefined;
    case "colon":
      return byte === COLON ? "value" : undefined;
    case "value":
      return inList && byte === OPEN_ARRAY ? "element or end" : isValueStart(byte) ? "cut" : undefined;
    case "element or end":
      if (byte === CLOSE_ARRAY) return "object";
      return byte === OPEN_OBJECT ? "cut" : undefined;
    case "element":
      return byte === OPEN_OBJECT ? "cut" : undefined;
    case "list": // after an element
      return byte === COMMA ? "element" : byte === CLOSE_ARRAY ? "object" : undefined;
    case "object": // after a member
      return byte === COMMA ? "key" : byte === CLOSE_OBJECT ? "end" : undefined;
    case "end":
      return undefined;
  }
}

function isValueStart(byte: number): boolean {
  return byte !== COMMA && byte !== COLON && byte !== CLOSE_OBJECT && byte !== CLOSE_ARRAY;
}

/** RFC 8259, 2. */
function isSpace(byte: number): boolean {
  return byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;
}
