/** Reads one filter: `selector ("," selector)*`, `selector := path [("==" | "!=" | "~=") value]`, `path := part ("." part)*`. */
import { ShaleError } from "../../errors/index.ts";
import { unquoteGo } from "./go-string.ts";
import { FILTER_LIMITS } from "./limits.ts";

export interface Selector {
  /** "labels.a.b" and `labels."a.b"` differ here and mean the same. */
  readonly path: readonly string[];
  readonly operator: "present" | "==" | "!=" | "~=";
  /** "" for "present". */
  readonly value: string;
}

/** Empty for a filter that everything passes. INVALID_ARGUMENT, with the place, for bad syntax. */
export function parseFilter(text: string): readonly Selector[] {
  if (text.length > FILTER_LIMITS.length) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `filter of more than ${FILTER_LIMITS.length} characters: invalid argument`,
    );
  }
  return text.trim() === "" ? [] : new Scanner(text).selectors();
}

class Scanner {
  readonly #text: string;
  #at = 0;

  constructor(text: string) {
    this.#text = text;
  }

  selectors(): Selector[] {
    const selectors: Selector[] = [];
    do {
      if (selectors.length === FILTER_LIMITS.selectors) {
        throw this.#error(`more than ${FILTER_LIMITS.selectors} selectors`);
      }
      selectors.push(this.#selector());
    } while (this.#take(/,/y) !== undefined);
    if (this.#at < this.#text.length) throw this.#error("something else than a comma");
    return selectors;
  }

  #selector(): Selector {
    const path = [this.#part()];
    while (this.#take(/\./y) !== undefined) path.push(this.#part());
    const operator = this.#take(/==|!=|~=/y);
    if (operator === undefined) {
      if (this.#at < this.#text.length && this.#text[this.#at] !== ",") throw this.#error("no operator");
      return { path, operator: "present", value: "" };
    }
    const known = operator as "==" | "!=" | "~="; // by the expression just above
    return { path, operator: known, value: this.#value(known === "~=") };
  }

  #part(): string {
    const word = this.#take(/[A-Za-z_][A-Za-z0-9_]*/y);
    if (word !== undefined) return word;
    const quoted = this.#quoted();
    if (quoted === undefined) throw this.#error("no field name");
    return quoted;
  }

  #value(pattern: boolean): string {
    const quoted = this.#quoted() ?? (pattern ? this.#delimited() : undefined);
    if (quoted !== undefined) return quoted;
    const bare = this.#take(/[^\s,"][^\s,]*/y);
    if (bare === undefined) throw this.#error("no value");
    return bare;
  }

  #quoted(): string | undefined {
    const literal = this.#take(/"(?:[^"\\\n]|\\[^\n])*"/y);
    if (literal === undefined) return undefined;
    const value = unquoteGo(literal);
    if (value === undefined) throw this.#error("a badly quoted string");
    return value;
  }

  /** A regular expression between slashes or bars; only the delimiter itself is escaped in it. */
  #delimited(): string | undefined {
    const literal = this.#take(/\/(?:[^/\\]|\\.)*\/|\|(?:[^|\\]|\\.)*\|/y);
    if (literal === undefined) return undefined;
    return literal.slice(1, -1).replaceAll(`\\${literal[0]}`, literal[0]!);
  }

  /** What is next, blanks aside, if it is that. */
  #take(expression: RegExp): string | undefined {
    const blanks = /\s*/y;
    blanks.lastIndex = this.#at;
    blanks.exec(this.#text);
    expression.lastIndex = blanks.lastIndex;
    const found = expression.exec(this.#text)?.[0];
    this.#at = found === undefined ? blanks.lastIndex : expression.lastIndex;
    return found;
  }

  #error(problem: string): ShaleError {
    const shown = this.#text.length > 200 ? `${this.#text.slice(0, 200)}...` : this.#text;
    return new ShaleError(
      "INVALID_ARGUMENT",
      `filter ${JSON.stringify(shown)} has ${problem} at ${this.#at}: invalid argument`,
    );
  }
}
