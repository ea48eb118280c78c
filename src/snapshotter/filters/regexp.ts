/**
 * Go's regular expressions (RE2 syntax, https://github.com/google/re2/wiki/Syntax), to answer one question: does it match
 * anywhere in a text? By an automaton that follows all possibilities at once, so the time is proportional to text times
 * pattern whatever the pattern: JavaScript's own engine goes back and forth, and a filter comes from outside.
 *
 * Not here since nothing asks for it: where it matches and what the groups hold. Lazy quantifiers are read, and mean the same.
 */
import { ShaleError } from "../../errors/index.ts";
import { FILTER_LIMITS } from "./limits.ts";
import { type CharacterTest, type Node, type Place, parseRegExp } from "./regexp-syntax.ts";

export interface Matcher {
  /** Whether the pattern matches anywhere in `text`. */
  matches(text: string): boolean;
}

type Instruction =
  | { readonly op: "character"; readonly test: CharacterTest }
  | { readonly op: "assert"; readonly place: Place }
  /** To both; `first` and `second` are places in the program. */
  | { readonly op: "fork"; readonly first: number; readonly second: number }
  | { readonly op: "match" };

/** INVALID_ARGUMENT for bad syntax, and for a pattern over the limits. */
export function compileRegExp(pattern: string): Matcher {
  const program = new Compiler(pattern).compile();
  return { matches: (text) => run(program, text) };
}

class Compiler {
  readonly #pattern: string;
  readonly #program: Instruction[] = [];
  /** Of the compilation: repeating what is empty costs no states. */
  #steps = 0;

  constructor(pattern: string) {
    this.#pattern = pattern;
  }

  compile(): readonly Instruction[] {
    this.#add(parseRegExp(this.#pattern));
    this.#push({ op: "match" });
    return this.#program;
  }

  #push(instruction: Instruction): number {
    if (this.#program.length >= FILTER_LIMITS.states) throw tooLarge();
    return this.#program.push(instruction) - 1;
  }

  /** Code that goes on at its own end when it has matched. */
  #add(node: Node): void {
    if (++this.#steps > 10 * FILTER_LIMITS.states) throw tooLarge();
    switch (node.kind) {
      case "empty":
        return;
      case "character":
        this.#push({ op: "character", test: node.test });
        return;
      case "assert":
        this.#push({ op: "assert", place: node.place });
        return;
      case "sequence":
        for (const part of node.parts) this.#add(part);
        return;
      case "alternatives":
        this.#alternatives(node.parts);
        return;
      case "repeat":
        this.#repeat(node.part, node.minimum, node.maximum);
    }
  }

  #alternatives(parts: readonly Node[]): void {
    const ends: number[] = [];
    for (const [at, part] of parts.entries()) {
      if (at === parts.length - 1) {
        this.#add(part);
        break;
      }
      const fork = this.#push({ op: "match" });
      this.#add(part);
      ends.push(this.#push({ op: "match" }));
      this.#program[fork] = { op: "fork", first: fork + 1, second: this.#program.length };
    }
    const end = this.#program.length;
    for (const at of ends) this.#program[at] = { op: "fork", first: end, second: end };
  }

  #repeat(part: Node, minimum: number, maximum: number): void {
    for (let count = 0; count < minimum; count++) this.#add(part);
    if (maximum === Infinity) {
      const fork = this.#push({ op: "match" });
      this.#add(part);
      this.#push({ op: "fork", first: fork, second: fork });
      this.#program[fork] = { op: "fork", first: fork + 1, second: this.#program.length };
      return;
    }
    const forks: number[] = [];
    for (let count = minimum; count < maximum; count++) {
      forks.push(this.#push({ op: "match" }));
      this.#add(part);
    }
    const end = this.#program.length;
    for (const fork of forks) this.#program[fork] = { op: "fork", first: fork + 1, second: end };
  }
}

function tooLarge(): ShaleError {
  return new ShaleError(
    "INVALID_ARGUMENT",
    `regular expression with more than ${FILTER_LIMITS.states} states: invalid argument`,
  );
}

function run(program: readonly Instruction[], text: string): boolean {
  const codes = Array.from(text, (character) => character.codePointAt(0)!);
  let current: number[] = [];
  for (let at = 0; at <= codes.length; at++) {
    const seen = new Uint8Array(program.length);
    const waiting: number[] = [];
    // The pattern may begin at every place.
    if (reach(program, [...current, 0], seen, waiting, codes, at)) return true;
    if (at === codes.length) return false;
    current = [];
    for (const place of waiting) {
      const instruction = program[place]!;
      if (instruction.op === "character" && instruction.test(codes[at]!)) current.push(place + 1);
    }
  }
  return false;
}

/** Follows everything that needs no character; true when the end is reached. */
function reach(
  program: readonly Instruction[],
  from: number[],
  seen: Uint8Array,
  waiting: number[],
  codes: readonly number[],
  at: number,
): boolean {
  while (from.length > 0) {
    const place = from.pop()!;
    if (seen[place] === 1) continue;
    seen[place] = 1;
    const instruction = program[place]!;
    if (instruction.op === "match") return true;
    if (instruction.op === "character") waiting.push(place);
    else if (instruction.op === "fork") from.push(instruction.first, instruction.second);
    else if (holds(instruction.place, codes, at)) from.push(place + 1);
  }
  return false;
}

const NEWLINE = 10;

function holds(place: Place, codes: readonly number[], at: number): boolean {
  switch (place) {
    case "text-start":
      return at === 0;
    case "text-end":
      return at === codes.length;
    case "line-start":
      return at === 0 || codes[at - 1] === NEWLINE;
    case "line-end":
      return at === codes.length || codes[at] === NEWLINE;
    default:
      return (isWord(codes[at - 1]) !== isWord(codes[at])) === (place === "word-boundary");
  }
}

/** ASCII only, as in RE2. */
function isWord(code: number | undefined): boolean {
  return code !== undefined && /^\w$/.test(String.fromCodePoint(code));
}
