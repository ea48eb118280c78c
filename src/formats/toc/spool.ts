/** Bytes written now and read once, later: a file as a rule, since the TOC of a large layer is large. */
export interface Spool {
  readonly size: number;
  /** The bytes are not kept after the call. */
  append(bytes: Uint8Array): void;
  /** All of it, in order. Pieces are valid until the next. */
  read(): Iterable<Uint8Array>;
}

export function memorySpool(): Spool {
  const parts: Uint8Array[] = [];
  let size = 0;
  return {
    get size() {
      return size;
    },
    append(bytes) {
      parts.push(new Uint8Array(bytes));
      size += bytes.length;
    },
    read: () => parts,
  };
}
