/** Go's string literals in double quotes (The Go Programming Language Specification, String literals). */

const SIMPLE: Readonly<Record<string, number>> = {
  ...{ a: 7, b: 8, f: 12, n: 10, r: 13, t: 9, v: 11 },
  ...{ "\\": 0x5c, '"': 0x22 },
};

/** The string that `literal`, quotes included, stands for; undefined when it is none. Bytes that are no UTF-8 become U+FFFD. */
export function unquoteGo(literal: string): string | undefined {
  if (literal.length < 2 || !literal.startsWith('"') || !literal.endsWith('"')) return undefined;
  const parts: Buffer[] = [];
  const expression =
    /([^"\\\n]+)|\\(?:([abfnrtv\\"])|([0-7]{3})|x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))/y;
  const inner = literal.slice(1, -1);
  while (expression.lastIndex < inner.length) {
    const match = expression.exec(inner);
    if (match === null) return undefined;
    const [, plain, simple, octal, byte, short, long] = match;
    if (plain !== undefined) parts.push(Buffer.from(plain));
    else if (simple !== undefined) parts.push(Buffer.of(SIMPLE[simple]!));
    else if (octal !== undefined || byte !== undefined) {
      const value = octal === undefined ? Number.parseInt(byte!, 16) : Number.parseInt(octal, 8);
      if (value > 255) return undefined;
      parts.push(Buffer.of(value));
    } else {
      const code = Number.parseInt(short ?? long!, 16);
      if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return undefined;
      parts.push(Buffer.from(String.fromCodePoint(code)));
    }
  }
  return Buffer.concat(parts).toString();
}
