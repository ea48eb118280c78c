/** A typed array that grows by half. Columns keep 1,000,000 entries at a few bytes each, where objects take hundreds. */
type Numbers = Uint8Array | Uint16Array | Uint32Array | Float64Array;

export class Column<A extends Numbers> {
  values: A;
  readonly #make: (length: number) => A;

  constructor(make: (length: number) => A, capacity = 64) {
    this.#make = make;
    this.values = make(capacity);
  }

  /** Makes room for `count` values; callers then index `values` directly. */
  reserve(count: number): void {
    if (count <= this.values.length) return;
    const grown = this.#make(Math.max(count, Math.ceil(this.values.length * 1.5)));
    grown.set(this.values as never);
    this.values = grown;
  }

  set(at: number, value: number): void {
    if (at >= this.values.length) this.reserve(at + 1);
    this.values[at] = value;
  }
}

export const u8Column = () => new Column((n) => new Uint8Array(n));
export const u16Column = () => new Column((n) => new Uint16Array(n));
export const u32Column = () => new Column((n) => new Uint32Array(n));
export const f64Column = () => new Column((n) => new Float64Array(n));

/** Shorter text is written byte by byte: names are, and a call into the runtime costs more than their loop. */
const LONG_TEXT = 64;

/** Append-only bytes, addressed by offset. Used for names and link targets. */
export class Arena {
  #bytes = Buffer.allocUnsafe(4096);
  #size = 0;

  /** All of them, and room behind; another one after an append. */
  get bytes(): Uint8Array {
    return this.#bytes;
  }

  get size(): number {
    return this.#size;
  }

  append(text: string): number {
    const at = this.#size;
    const end = at + text.length;
    if (end > this.#bytes.length) {
      const grown = Buffer.allocUnsafe(Math.max(end, Math.ceil(this.#bytes.length * 1.5)));
      this.#bytes.copy(grown, 0, 0, at);
      this.#bytes = grown;
    }
    const bytes = this.#bytes;
    if (text.length > LONG_TEXT) bytes.write(text, at, "latin1");
    else for (let i = 0; i < text.length; i++) bytes[at + i] = text.charCodeAt(i);
    this.#size = end;
    return at;
  }

  text(offset: number, length: number): string {
    return this.#bytes.toString("latin1", offset, offset + length);
  }

  equals(offset: number, text: string): boolean {
    const bytes = this.#bytes;
    for (let i = 0; i < text.length; i++) if (bytes[offset + i] !== text.charCodeAt(i)) return false;
    return true;
  }

  /** Byte order of two slices, as memcmp. */
  compare(a: number, aLength: number, b: number, bLength: number): number {
    const bytes = this.#bytes;
    const common = Math.min(aLength, bLength);
    for (let i = 0; i < common; i++) {
      const difference = bytes[a + i]! - bytes[b + i]!;
      if (difference !== 0) return difference;
    }
    return aLength - bLength;
  }

  /** Writes a slice to `target` from `at` on. */
  copy(offset: number, length: number, target: Uint8Array, at: number): void {
    const bytes = this.#bytes;
    for (let i = 0; i < length; i++) target[at + i] = bytes[offset + i]!;
  }
}
