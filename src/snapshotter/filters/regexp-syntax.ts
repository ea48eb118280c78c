/** Reads RE2 syntax into a tree. */
import { ShaleError } from "../../errors/index.ts";
import { FILTER_LIMITS } from "./limits.ts";

export type CharacterTest = (code: number) => boolean;
export type Place = "text-start" | "text-end" | "line-start" | "line-end" | "word-boundary" | "no-word-boundary";

export type Node =
  | { readonly kind: "empty" }
  | { readonly kind: "character"; readonly test: CharacterTest }
  | { readonly kind: "assert"; readonly place: Place }
  | { readonly kind: "sequence"; readonly parts: readonly Node[] }
  | { readonly kind: "alternatives"; readonly parts: readonly Node[] }
  /** `maximum` may be Infinity. */
  | { readonly kind: "repeat"; readonly part: Node; readonly minimum: number; readonly maximum: number };

interface Flags {
  readonly ignoreCase: boolean;
  readonly multiLine: boolean;
  readonly dotAll: boolean;
}

const NO_FLAGS: Flags = { ignoreCase: false, multiLine: false, dotAll: false };

/** INVALID_ARGUMENT for what RE2 refuses. */
export function parseRegExp(pattern: string): Node {
  if (pattern.length > FILTER_LIMITS.pattern) {
    throw new ShaleError(
      "INVALID_ARGUMENT",
      `regular expression of more than ${FILTER_LIMITS.pattern} characters: invalid argument`,
    );
  }
  return new Parser(pattern).parse();
}

class Parser {
  readonly #pattern: string;
  readonly #characters: readonly string[];
  #at = 0;
  #depth = 0;

  constructor(pattern: string) {
    this.#pattern = pattern;
    this.#characters = [...pattern];
  }

  parse(): Node {
    const node = this.#alternatives(NO_FLAGS);
    if (this.#at < this.#characters.length) throw this.#error("an unexpected )");
    return node;
  }

  #error(problem: string): ShaleError {
    return new ShaleError(
      "INVALID_ARGUMENT",
      `regular expression ${JSON.stringify(this.#pattern)} has ${problem}: invalid argument`,
    );
  }

  #peek(ahead = 0): string | undefined {
    return this.#characters[this.#at + ahead];
  }

  #take(text: string): boolean {
    const wanted = [...text];
    if (!wanted.every((character, at) => this.#peek(at) === character)) return false;
    this.#at += wanted.length;
    return true;
  }

  #next(): string {
    const character = this.#characters[this.#at++];
    if (character === undefined) throw this.#error("no end");
    return character;
  }

  #alternatives(flags: Flags): Node {
    if (++this.#depth > FILTER_LIMITS.depth) throw this.#error(`more than ${FILTER_LIMITS.depth} groups in groups`);
    const parts: Node[] = [];
    let now = flags;
    for (;;) {
      const sequence: Node[] = [];
      while (this.#peek() !== undefined && this.#peek() !== "|" && this.#peek() !== ")") {
        const changed = this.#flagsOnly(now);
        if (changed === undefined) sequence.push(this.#repeated(now));
        else now = changed;
      }
      parts.push(sequence.length === 1 ? sequence[0]! : { kind: "sequence", parts: sequence });
      if (!this.#take("|")) break;
    }
    this.#depth--;
    return parts.length === 1 ? parts[0]! : { kind: "alternatives", parts };
  }

  /** `(?i)`: flags for the rest of the group. */
  #flagsOnly(flags: Flags): Flags | undefined {
    const match = /^\(\?([imsU]*)(?:-([imsU]+))?\)/.exec(this.#characters.slice(this.#at, this.#at + 16).join(""));
    if (match === null || match[0] === "(?)") return undefined;
    this.#at += match[0].length;
    return withFlags(flags, match[1]!, match[2] ?? "");
  }

  #repeated(flags: Flags): Node {
    let node = this.#atom(flags);
    for (let quantified = false; ; quantified = true) {
      const range = this.#quantifier();
      if (range === undefined) return node;
      if (quantified) throw this.#error("a repetition of a repetition");
      this.#take("?"); // lazy: whether it matches is the same
      node = { kind: "repeat", part: node, ...range };
    }
  }

  #quantifier(): { readonly minimum: number; readonly maximum: number } | undefined {
    if (this.#take("*")) return { minimum: 0, maximum: Infinity };
    if (this.#take("+")) return { minimum: 1, maximum: Infinity };
    if (this.#take("?")) return { minimum: 0, maximum: 1 };
    const match = /^\{(\d{1,6})(,(\d{0,6}))?\}/.exec(this.#characters.slice(this.#at, this.#at + 16).join(""));
    if (match === null) return undefined; // a brace that is no quantifier stands for itself
    this.#at += match[0].length;
    const minimum = Number(match[1]);
    const maximum = match[2] === undefined ? minimum : match[3] === "" ? Infinity : Number(match[3]);
    if (minimum > maximum || minimum > FILTER_LIMITS.repeat || (maximum > FILTER_LIMITS.repeat && maximum < Infinity)) {
      throw this.#error(`a repetition of ${match[0]}`);
    }
    return { minimum, maximum };
  }

  #atom(flags: Flags): Node {
    const character = this.#next();
    switch (character) {
      case "(":
        return this.#group(flags);
      case "[":
        return one(this.#set(flags), flags);
      case ".":
        return { kind: "character", test: flags.dotAll ? () => true : (code) => code !== 10 };
      case "^":
        return { kind: "assert", place: flags.multiLine ? "line-start" : "text-start" };
      case "$":
        return { kind: "assert", place: flags.multiLine ? "line-end" : "text-end" };
      case "*":
      case "+":
      case "?":
        throw this.#error(`a ${character} with nothing before it`);
      case "\\":
        return this.#escape(flags);
      default:
        return one(equal(character.codePointAt(0)!), flags);
    }
  }

  #group(flags: Flags): Node {
    let inner = flags;
    if (this.#take("?")) {
      const rest = this.#characters.slice(this.#at, this.#at + 128).join("");
      const named = /^P?<[A-Za-z_][A-Za-z0-9_]*>/.exec(rest);
      const options = /^([imsU]*)(?:-([imsU]+))?:/.exec(rest);
      const head = named ?? options;
      if (head === null) throw this.#error("an unknown kind of group");
      this.#at += head[0].length;
      if (named === null) inner = withFlags(flags, options![1]!, options![2] ?? "");
    }
    const node = this.#alternatives(inner);
    if (!this.#take(")")) throw this.#error("a group without end");
    return node;
  }

  #escape(flags: Flags): Node {
    if (this.#take("A")) return { kind: "assert", place: "text-start" };
    if (this.#take("z")) return { kind: "assert", place: "text-end" };
    if (this.#take("b")) return { kind: "assert", place: "word-boundary" };
    if (this.#take("B")) return { kind: "assert", place: "no-word-boundary" };
    if (this.#take("Q")) return this.#quoted(flags);
    return one(this.#escapedClass() ?? equal(this.#escapedCharacter()), flags);
  }

  /** \Q...\E */
  #quoted(flags: Flags): Node {
    const parts: Node[] = [];
    while (this.#peek() !== undefined && !this.#take("\\E")) {
      parts.push(one(equal(this.#next().codePointAt(0)!), flags));
    }
    return { kind: "sequence", parts };
  }

  /** After the backslash: \d, \pL and the like; undefined for anything else. */
  #escapedClass(): CharacterTest | undefined {
    const letter = this.#peek() ?? "";
    const perl = PERL_CLASSES[letter];
    if (perl !== undefined) {
      this.#at++;
      return perl;
    }
    if (letter !== "p" && letter !== "P") return undefined;
    this.#at++;
    let name = this.#next();
    let negated = letter === "P";
    if (name === "{") {
      for (name = ""; !this.#take("}"); ) name += this.#next();
      if (name.startsWith("^")) {
        negated = !negated;
        name = name.slice(1);
      }
    }
    const test = unicodeClass(name);
    if (test === undefined) throw this.#error(`an unknown class ${JSON.stringify(name)}`);
    return negated ? not(test) : test;
  }

  /** After the backslash. */
  #escapedCharacter(): number {
    const character = this.#next();
    const control = CONTROLS[character];
    if (control !== undefined) return control;
    if (character === "x") return this.#hexadecimal();
    if (/[0-7]/.test(character)) {
      let digits = character;
      while (digits.length < 3 && /^[0-7]$/.test(this.#peek() ?? "")) digits += this.#next();
      if (digits.length === 1 && digits !== "0") throw this.#error("a reference to a group");
      return Number.parseInt(digits, 8);
    }
    if (/[A-Za-z0-9]/.test(character)) throw this.#error(`an unknown escape \\${character}`);
    return character.codePointAt(0)!;
  }

  #hexadecimal(): number {
    let digits = "";
    if (this.#take("{")) while (!this.#take("}")) digits += this.#next();
    else digits = this.#next() + this.#next();
    const code = Number.parseInt(digits, 16);
    if (!/^[0-9A-Fa-f]{1,8}$/.test(digits) || code > 0x10ffff) throw this.#error(`a bad number ${digits}`);
    return code;
  }

  /** After the opening bracket. */
  #set(flags: Flags): CharacterTest {
    const negated = this.#take("^");
    const tests: CharacterTest[] = [];
    for (let first = true; first || this.#peek() !== "]"; first = false) {
      const posix = /^\[:(\^?)([a-z]+):\]/.exec(this.#characters.slice(this.#at, this.#at + 16).join(""));
      if (posix !== null) {
        const test = POSIX_CLASSES[posix[2]!];
        if (test === undefined) throw this.#error(`an unknown class ${posix[0]}`);
        this.#at += posix[0].length;
        tests.push(posix[1] === "" ? test : not(test));
        continue;
      }
      const escaped = this.#take("\\");
      const named = escaped ? this.#escapedClass() : undefined;
      if (named !== undefined) {
        tests.push(named);
        continue;
      }
      const low = this.#memberOfSet(escaped);
      if (this.#peek() !== "-" || this.#peek(1) === "]" || this.#peek(1) === undefined) {
        tests.push(equal(low));
        continue;
      }
      this.#at++;
      const escapedHigh = this.#take("\\");
      if (escapedHigh && this.#escapedClass() !== undefined) throw this.#error("a class at the end of a range");
      const high = this.#memberOfSet(escapedHigh);
      if (high < low) throw this.#error("a range that ends before it begins");
      tests.push((code) => code >= low && code <= high);
    }
    this.#at++;
    const any: CharacterTest = (code) => tests.some((test) => test(code));
    const folded = flags.ignoreCase ? foldCase(any) : any;
    return negated ? not(folded) : folded;
  }

  /** One character of a set, after its backslash if it has one. */
  #memberOfSet(escaped: boolean): number {
    return escaped ? this.#escapedCharacter() : this.#next().codePointAt(0)!;
  }
}

function withFlags(flags: Flags, on: string, off: string): Flags {
  const value = (letter: string, before: boolean) => (off.includes(letter) ? false : on.includes(letter) || before);
  return {
    ignoreCase: value("i", flags.ignoreCase),
    multiLine: value("m", flags.multiLine),
    dotAll: value("s", flags.dotAll),
  };
}

function one(test: CharacterTest, flags: Flags): Node {
  return { kind: "character", test: flags.ignoreCase ? foldCase(test) : test };
}

const equal =
  (wanted: number): CharacterTest =>
  (code) =>
    code === wanted;
const not =
  (test: CharacterTest): CharacterTest =>
  (code) =>
    !test(code);

function foldCase(test: CharacterTest): CharacterTest {
  return (code) => {
    const text = String.fromCodePoint(code);
    return [text, text.toLowerCase(), text.toUpperCase()].some(
      (each) => [...each].length === 1 && test(each.codePointAt(0)!),
    );
  };
}

/** One character against a class of JavaScript's: no repetition, so no backtracking. */
function javascriptClass(source: string): CharacterTest {
  const expression = new RegExp(`^${source}$`, "u");
  return (code) => expression.test(String.fromCodePoint(code));
}

function unicodeClass(name: string): CharacterTest | undefined {
  if (!/^[A-Za-z_]{1,40}$/.test(name)) return undefined;
  for (const source of [`\\p{${name}}`, `\\p{Script=${name}}`]) {
    try {
      return javascriptClass(source);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error; // not a class of this kind
    }
  }
  return undefined;
}

const DIGIT = javascriptClass("[0-9]");
const WORD = javascriptClass("[0-9A-Za-z_]");
const SPACE = javascriptClass("[\\t\\n\\f\\r ]");

const PERL_CLASSES: Readonly<Record<string, CharacterTest>> = {
  d: DIGIT,
  D: not(DIGIT),
  w: WORD,
  W: not(WORD),
  s: SPACE,
  S: not(SPACE),
};

const POSIX_CLASSES: Readonly<Record<string, CharacterTest>> = {
  alnum: javascriptClass("[0-9A-Za-z]"),
  alpha: javascriptClass("[A-Za-z]"),
  ascii: (code) => code < 128,
  blank: javascriptClass("[\\t ]"),
  cntrl: (code) => code < 32 || code === 127,
  digit: DIGIT,
  graph: (code) => code > 32 && code < 127,
  lower: javascriptClass("[a-z]"),
  print: (code) => code >= 32 && code < 127,
  punct: javascriptClass("[!-/:-@\\[-`{-~]"),
  space: javascriptClass("[\\t\\n\\v\\f\\r ]"),
  upper: javascriptClass("[A-Z]"),
  word: WORD,
  xdigit: javascriptClass("[0-9A-Fa-f]"),
};

const CONTROLS: Readonly<Record<string, number>> = { a: 7, f: 12, t: 9, n: 10, r: 13, v: 11 };
