/** WWW-Authenticate, RFC 9110 section 11.6.1, with the parameters that RFC 6750 and the registry token flow use. */

export interface Challenge {
  /** Lower case. */
  readonly scheme: string;
  /** Names in lower case. */
  readonly parameters: ReadonlyMap<string, string>;
}

/** RFC 9110 section 5.6.2. */
const TOKEN = /[!#$%&'*+\-.^_`|~0-9A-Za-z]+/y;
/** RFC 9110 section 5.6.4, with its quotes. */
const QUOTED = /"((?:[^"\\]|\\.)*)"/y;
/** Section 11.2: token68, in the place of parameters. */
const TOKEN68 = /[A-Za-z0-9\-._~+/]+=*(?=\s*(?:,|$))/y;
const SPACE = /[ \t]+/y;
const COMMAS = /[ \t,]*/y;
const EQUALS = /[ \t]*=[ \t]*/y;

/** Longer headers are cut: no real challenge comes near. */
const MAX_LENGTH = 8192;

/** All challenges of all header lines, in order. What is not understood ends its line: a peer's mistake, not ours. */
export function parseChallenges(lines: readonly string[]): Challenge[] {
  return lines.flatMap((line) => parseLine(line.slice(0, MAX_LENGTH)));
}

function parseLine(line: string): Challenge[] {
  const challenges: Challenge[] = [];
  let at = 0;
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at;
    const match = pattern.exec(line);
    if (match) at = pattern.lastIndex;
    return match;
  };
  let parameters: Map<string, string> | undefined;
  for (;;) {
    take(COMMAS);
    const start = at;
    const name = take(TOKEN)?.[0].toLowerCase();
    if (name === undefined) return challenges;
    if (take(EQUALS)) {
      // "name = value" continues the challenge before it
      const value = take(QUOTED)?.[1]?.replace(/\\(.)/g, "$1") ?? take(TOKEN)?.[0];
      if (parameters === undefined || value === undefined) return challenges;
      if (!parameters.has(name)) parameters.set(name, value);
      continue;
    }
    if (at > start && at < line.length && !/[ \t,]/.test(line[at]!)) return challenges;
    parameters = new Map();
    challenges.push({ scheme: name, parameters });
    if (take(SPACE)) {
      const before = at;
      // "Negotiate abc==" has a token68; a parameter name looks alike but has "=" and a value behind it
      const token68 = take(TOKEN68);
      if (token68 && !/=/.test(token68[0])) at = before; // may be the next challenge's scheme
    }
  }
}
