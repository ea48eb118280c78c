/** Limits of what a client may ask `List` for; docs/limits.md lists them. */
export const FILTER_LIMITS = {
  /** UTF-16 units of one filter. */
  length: 16_384,
  /** Filters in one call. */
  filters: 100,
  /** Selectors in one filter. */
  selectors: 100,
  /** UTF-16 units of one regular expression. */
  pattern: 1000,
  /** States of its automaton: {n,m} and nesting multiply. */
  states: 5000,
  /** Highest n and m in {n,m}, as in RE2. */
  repeat: 1000,
  /** Groups within groups. */
  depth: 100,
} as const;
