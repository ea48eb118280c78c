import { FormatError } from "../errors/index.ts";

/**
 * Binary layouts as tables: one table serves decode, encode, dump and fuzz. Little-endian and big-endian integers,
 * fixed byte arrays and NUL-padded text. A u64 is a bigint in the table; make it a checked number with `safeNumber`.
 */
export interface Field<T> {
  readonly offset: number;
  readonly length: number;
  get(view: DataView, at: number): T;
  set(view: DataView, at: number, value: T): void;
}

type Values<F extends Record<string, Field<unknown>>> = { [K in keyof F]: F[K] extends Field<infer T> ? T : never };

export interface Struct<F extends Record<string, Field<unknown>>> {
  readonly name: string;
  readonly size: number;
  readonly fields: F;
  /** FormatError when fewer than `size` bytes follow `offset`. */
  read(bytes: Uint8Array, offset?: number): Values<F>;
  /** Fields that are not given stay as they are in `bytes`. */
  write(bytes: Uint8Array, offset: number, values: Partial<Values<F>>): void;
}

function integer(
  length: number,
  get: (v: DataView, at: number) => number,
  set: (v: DataView, at: number, n: number) => void,
) {
  return (offset: number): Field<number> => ({ offset, length, get, set });
}

export const u8 = integer(
  1,
  (v, at) => v.getUint8(at),
  (v, at, n) => v.setUint8(at, n),
);
export const u16le = integer(
  2,
  (v, at) => v.getUint16(at, true),
  (v, at, n) => v.setUint16(at, n, true),
);
export const u32le = integer(
  4,
  (v, at) => v.getUint32(at, true),
  (v, at, n) => v.setUint32(at, n, true),
);
export const u16be = integer(
  2,
  (v, at) => v.getUint16(at),
  (v, at, n) => v.setUint16(at, n),
);
export const u32be = integer(
  4,
  (v, at) => v.getUint32(at),
  (v, at, n) => v.setUint32(at, n),
);

export function u64le(offset: number): Field<bigint> {
  return {
    offset,
    length: 8,
    get: (v, at) => v.getBigUint64(at, true),
    set: (v, at, n) => v.setBigUint64(at, n, true),
  };
}

export function i64le(offset: number): Field<bigint> {
  return {
    offset,
    length: 8,
    get: (v, at) => v.getBigInt64(at, true),
    set: (v, at, n) => v.setBigInt64(at, n, true),
  };
}

/** A fixed run of bytes; shorter values are padded with zeros, longer ones are a RangeError. */
export function bytes(offset: number, length: number): Field<Uint8Array> {
  return {
    offset,
    length,
    get: (v, at) => new Uint8Array(v.buffer.slice(v.byteOffset + at, v.byteOffset + at + length)),
    set(v, at, value) {
      if (value.length > length) throw new RangeError(`${value.length} bytes do not fit in ${length}`);
      const target = new Uint8Array(v.buffer, v.byteOffset + at, length);
      target.fill(0);
      target.set(value);
    },
  };
}

/** NUL-padded text, one byte a character. */
export function text(offset: number, length: number): Field<string> {
  const raw = bytes(offset, length);
  return {
    offset,
    length,
    get(v, at) {
      const all = Buffer.from(raw.get(v, at));
      const end = all.indexOf(0);
      return all.toString("latin1", 0, end < 0 ? length : end);
    },
    set: (v, at, value) => raw.set(v, at, Buffer.from(value, "latin1")),
  };
}

export function struct<F extends Record<string, Field<unknown>>>(name: string, size: number, fields: F): Struct<F> {
  const entries = Object.entries(fields);
  for (const [key, field] of entries) {
    if (field.offset + field.length > size) throw new RangeError(`${name}.${key} ends after byte ${size}`);
  }
  return {
    name,
    size,
    fields,
    read(data, offset = 0) {
      if (offset < 0 || offset + size > data.length) {
        throw new FormatError(name, "length", `needs ${size} bytes, ${Math.max(0, data.length - offset)} are left`, {
          offset,
        });
      }
      const view = new DataView(data.buffer, data.byteOffset + offset, size);
      const values: Record<string, unknown> = {};
      for (const [key, field] of entries) values[key] = field.get(view, field.offset);
      return values as Values<F>;
    },
    write(data, offset, values) {
      if (offset < 0 || offset + size > data.length) throw new RangeError(`${name} does not fit at ${offset}`);
      const view = new DataView(data.buffer, data.byteOffset + offset, size);
      for (const [key, field] of entries) {
        const value = values[key];
        if (value !== undefined) field.set(view, field.offset, value);
      }
    },
  };
}

/** A u64 as a number; FormatError when it is over 2^53-1 (no file or offset of ours is). */
export function safeNumber(value: bigint, format: string, field: string, offset?: number): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER) || value < BigInt(Number.MIN_SAFE_INTEGER)) {
    throw new FormatError(format, field, `${value} is not below 2^53`, offset === undefined ? {} : { offset });
  }
  return Number(value);
}
