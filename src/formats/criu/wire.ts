/**
 * Protocol-buffer messages by tables of the fields that are wanted. protobuf.dev/programming-guides/encoding: a message is
 * a sequence of (tag, value), a tag is field number << 3 | wire type; what no table names is passed over. The last value of
 * a field counts; a repeated number may be packed.
 */
import type { ByteString } from "../../bytes/index.ts";
import { byteString } from "../../bytes/index.ts";
import { FormatError } from "../../errors/index.ts";

/** One field of a table: what it is before any value of it came, and after one more. */
export interface Field<V> {
  readonly number: number;
  readonly wire: 0 | 2;
  /** Several numbers may share one value of wire type 2. */
  readonly packable?: true;
  initial(): V;
  merge(before: V, reader: WireReader): V;
}

export type Table = Readonly<Record<string, Field<never> | Field<unknown>>>;
export type MessageOf<T extends Table> = { -readonly [K in keyof T]: T[K] extends Field<infer V> ? V : never };

export interface Message<T extends Table> {
  readonly name: string;
  /** FormatError with `name` for malformed bytes; offsets count from the start of `bytes`. */
  decode(bytes: Uint8Array): MessageOf<T>;
}

/** A decoder for the fields of `table`. Absent fields have their initial value: undefined, or none of them. */
export function message<const T extends Table>(name: string, table: T): Message<T> {
  const fields = Object.entries(table as Readonly<Record<string, Field<unknown>>>);
  const byNumber = new Map(fields.map(([key, field]) => [field.number, { key, field }]));
  return {
    name,
    decode(bytes) {
      const reader = new WireReader(bytes, name);
      const result: Record<string, unknown> = {};
      for (const [key, field] of fields) result[key] = field.initial();
      while (!reader.isAtEnd) {
        const { number, wire } = reader.tag();
        const found = byNumber.get(number);
        if (found === undefined) {
          reader.skip(wire);
          continue;
        }
        const { key, field } = found;
        if (wire === field.wire) result[key] = field.merge(result[key], reader);
        else if (field.packable === true && wire === 2) {
          for (const end = reader.length() + reader.at; reader.at < end; ) {
            result[key] = field.merge(result[key], reader);
          }
        } else throw reader.fail(key, `has wire type ${wire}`);
      }
      return result as MessageOf<T>; // each key was set by its own field
    },
  };
}

function single<V>(number: number, wire: 0 | 2, read: (reader: WireReader) => V): Field<V | undefined> {
  return { number, wire, initial: () => undefined, merge: (_, reader) => read(reader) };
}

/** uint32, enum: values above 32 bits are cut, as protobuf says. */
export function u32(number: number): Field<number | undefined> {
  return single(number, 0, (reader) => reader.low32());
}

/** uint64 as a number; FormatError for one that a double can't hold (addresses of pages always fit). */
export function u64(number: number): Field<number | undefined> {
  return single(number, 0, (reader) => reader.varint());
}

export function bool(number: number): Field<boolean | undefined> {
  return single(number, 0, (reader) => reader.low32() !== 0);
}

export function u32s(number: number): Field<number[]> {
  return {
    number,
    wire: 0,
    packable: true,
    initial: () => [],
    merge(list, reader) {
      list.push(reader.low32());
      return list;
    },
  };
}

/** string or bytes: the kernel's names are bytes. */
export function text(number: number): Field<ByteString | undefined> {
  return single(number, 2, (reader) => byteString(reader.bytes()));
}

export function inner<T extends Table>(number: number, { decode }: Message<T>): Field<MessageOf<T> | undefined> {
  return single(number, 2, (reader) => decode(reader.bytes()));
}

/** A varint has at most ten bytes of seven bits. */
const VARINT_MAX = 10;

export class WireReader {
  readonly #bytes: Uint8Array;
  readonly #name: string;
  #at = 0;

  constructor(bytes: Uint8Array, name: string) {
    this.#bytes = bytes;
    this.#name = name;
  }

  get at(): number {
    return this.#at;
  }

  get isAtEnd(): boolean {
    return this.#at >= this.#bytes.length;
  }

  tag(): { readonly number: number; readonly wire: number } {
    const tag = this.varint();
    const number = Math.floor(tag / 8);
    if (number < 1 || number >= 2 ** 29) throw this.fail("tag", `names field ${number}`);
    return { number, wire: tag % 8 };
  }

  /** FormatError for a value that a double can't hold: neither below 2^53 nor a multiple of its magnitude's step. */
  varint(): number {
    const [low, high] = this.#varint();
    const value = high * 2 ** 28 + low;
    if (value - low !== high * 2 ** 28) throw this.fail("number", "does not fit a 53-bit mantissa");
    return value;
  }

  /** The lowest 32 bits, whatever is above: a negative enum has ten bytes. */
  low32(): number {
    const [low, high] = this.#varint();
    return (high % 16) * 2 ** 28 + low;
  }

  /** The lowest 28 bits, and the 36 above: each exact. */
  #varint(): readonly [number, number] {
    let low = 0;
    let high = 0;
    for (let count = 0; count < VARINT_MAX; count++) {
      const byte = this.#bytes[this.#at];
      if (byte === undefined) throw this.fail("number", "is cut off");
      this.#at++;
      if (count < 4) low += (byte & 0x7f) * 2 ** (7 * count);
      else high += (byte & 0x7f) * 2 ** (7 * (count - 4));
      if (byte < 0x80) return [low, high % 2 ** 36]; // ten bytes hold 70 bits, protobuf drops those above 64
    }
    throw this.fail("number", "is longer than ten bytes");
  }

  /** Of a value of wire type 2, which is then within the bytes. */
  length(): number {
    const length = this.varint();
    if (length > this.#bytes.length - this.#at) throw this.fail("length", `is ${length}, beyond the end`);
    return length;
  }

  /** A view. */
  bytes(): Uint8Array {
    const length = this.length();
    this.#at += length;
    return this.#bytes.subarray(this.#at - length, this.#at);
  }

  /** Passes over a value of a field that is not wanted. Groups were never used by CRIU. */
  skip(wire: number): void {
    if (wire === 0) {
      this.#varint();
      return;
    }
    if (wire === 2) {
      const length = this.length(); // first: "+=" reads the place before it moves
      this.#at += length;
      return;
    }
    const size = wire === 1 ? 8 : wire === 5 ? 4 : undefined;
    if (size === undefined) throw this.fail("tag", `has wire type ${wire}`);
    if (size > this.#bytes.length - this.#at) throw this.fail("number", "is cut off");
    this.#at += size;
  }

  fail(field: string, problem: string): FormatError {
    return new FormatError(this.#name, field, problem, { offset: this.#at });
  }
}
