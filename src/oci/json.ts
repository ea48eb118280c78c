/**
 * Reading JSON from a peer: every step knows its path, so that an error names the exact place ("layers[3].size").
 */
import { FormatError, type ShaleErrorOptions, shownValue } from "../errors/index.ts";

/** Keys and values of one annotation or label map, together. */
const MAX_MAP_CHARACTERS = 1 << 20;
const MAX_MAP_ENTRIES = 4096;

type FailOptions = Pick<ShaleErrorOptions, "hint"> & { readonly code?: "RESOURCE_EXHAUSTED" | "UNIMPLEMENTED" };

/** One value in a document. `null` counts as absent: Go writes empty lists and maps so. */
export class JsonNode {
  readonly value: unknown;
  readonly path: string;
  readonly format: string;

  constructor(format: string, path: string, value: unknown) {
    this.format = format;
    this.path = path;
    this.value = value;
  }

  get isAbsent(): boolean {
    return this.value === undefined || this.value === null;
  }

  fail(problem: string, options: FailOptions = {}): FormatError {
    return new FormatError(this.format, this.path === "" ? "document" : this.path, problem, options);
  }

  /** The member `key` of an object, which may be absent. */
  get(key: string): JsonNode {
    const object = this.#object();
    // a key may be a peer's choice (annotations): it goes into messages, so nothing that a terminal would act on
    const segment = /^[\w./:-]{0,80}$/.test(key) ? key : JSON.stringify(key.slice(0, 80));
    const path = this.path === "" ? segment : `${this.path}.${segment}`;
    return new JsonNode(this.format, path, Object.hasOwn(object, key) ? object[key] : undefined);
  }

  string(): string {
    if (typeof this.value !== "string") throw this.#wrongType("a string");
    return this.value;
  }

  optionalString(): string | undefined {
    return this.isAbsent ? undefined : this.string();
  }

  optionalBoolean(): boolean | undefined {
    if (this.isAbsent) return undefined;
    if (typeof this.value !== "boolean") throw this.#wrongType("a boolean");
    return this.value;
  }

  /** A whole number from 0 to 2^53-1. */
  size(): number {
    if (typeof this.value !== "number") throw this.#wrongType("a number");
    if (!Number.isSafeInteger(this.value) || this.value < 0) {
      throw this.fail(`must be a whole number of 0..2^53-1: current value is ${this.value}`);
    }
    return this.value;
  }

  /** Elements of a list; an absent list has none. RESOURCE_EXHAUSTED over `limit`. */
  list(limit: number): JsonNode[] {
    if (this.isAbsent) return [];
    if (!Array.isArray(this.value)) throw this.#wrongType("a list");
    if (this.value.length > limit) {
      throw this.fail(`has ${this.value.length} elements, the limit is ${limit}`, { code: "RESOURCE_EXHAUSTED" });
    }
    return this.value.map((value: unknown, i) => new JsonNode(this.format, `${this.path}[${i}]`, value));
  }

  strings(limit: number): string[] {
    return this.list(limit).map((one) => one.string());
  }

  /** A map of strings, in document order, without a prototype (a key may be "__proto__"). */
  stringMap(): Readonly<Record<string, string>> {
    const result: Record<string, string> = Object.create(null);
    if (this.isAbsent) return result;
    let characters = 0;
    for (const key of this.keys()) {
      const value = this.get(key).string();
      characters += key.length + value.length;
      if (characters > MAX_MAP_CHARACTERS) {
        throw this.fail(`is larger than the limit of ${MAX_MAP_CHARACTERS} characters`, { code: "RESOURCE_EXHAUSTED" });
      }
      result[key] = value;
    }
    return result;
  }

  /** Names of an object's members; none when absent. */
  keys(): string[] {
    if (this.isAbsent) return [];
    const keys = Object.keys(this.#object());
    if (keys.length > MAX_MAP_ENTRIES) {
      throw this.fail(`has ${keys.length} entries, the limit is ${MAX_MAP_ENTRIES}`, { code: "RESOURCE_EXHAUSTED" });
    }
    return keys;
  }

  #object(): Readonly<Record<string, unknown>> {
    if (typeof this.value !== "object" || this.value === null || Array.isArray(this.value)) {
      throw this.#wrongType("an object");
    }
    return this.value as Readonly<Record<string, unknown>>;
  }

  #wrongType(wanted: string): FormatError {
    return this.fail(this.isAbsent ? "is missing" : `must be ${wanted}, is ${typeName(this.value)}`);
  }
}

/** Decodes a whole document: UTF-8, one JSON object. FormatError over `limit` bytes or for anything else. */
export function decodeJson(bytes: Uint8Array, format: string, limit: number): JsonNode {
  const root = decodeJsonValue(bytes, format, limit);
  root.get(""); // the root is an object
  return root;
}

/** As {@link decodeJson}, for a document that may be a list, or null. */
export function decodeJsonValue(bytes: Uint8Array, format: string, limit: number): JsonNode {
  if (bytes.length > limit) {
    throw new FormatError(format, "document", `has ${bytes.length} bytes, the limit is ${limit}`, {
      code: "RESOURCE_EXHAUSTED",
    });
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    // TextDecoder throws TypeError, JSON.parse SyntaxError; both speak of the input here
    if (!(error instanceof SyntaxError) && !(error instanceof TypeError)) throw error;
    throw new FormatError(format, "document", "is not JSON in UTF-8", { cause: error });
  }
  return new JsonNode(format, "", value);
}

function typeName(value: unknown): string {
  return typeof value === "object" ? shownValue(value) : `a ${typeof value}`;
}
