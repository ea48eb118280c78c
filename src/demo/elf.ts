/**
 * What a dynamic ELF object needs to run: its interpreter and libraries, read from the file as the dynamic loader does.
 * Instead of `ldd`, which runs the program it is asked about and is missing on small systems. Pure.
 *
 * System V ABI, chapters 4 (ELF header) and 5 (program header, dynamic section); Linux uapi/linux/elf.h.
 */
import { type ByteSource, byteString } from "../bytes/index.ts";
import { FormatError } from "../errors/index.ts";

export interface ElfDependencies {
  /** Path of the dynamic loader (PT_INTERP); undefined for a library or a static program. */
  readonly interpreter: string | undefined;
  /** Names or paths of libraries (DT_NEEDED), in order. */
  readonly needed: readonly string[];
  /** Directories of DT_RUNPATH, or DT_RPATH where there is none; may hold $ORIGIN. */
  readonly searchPath: readonly string[];
}

const MAGIC = 0x7f454c46;
const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const DT_NULL = 0;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const DT_STRSZ = 10;
const DT_RPATH = 15;
const DT_RUNPATH = 29;
/** PATH_MAX of linux/limits.h. */
const MAX_INTERPRETER = 4096;
const MAX_PROGRAM_HEADERS = 1024;
/** Real ones have tens of entries and string tables of up to a few MiB (large C++ libraries). */
const MAX_DYNAMIC = 1 << 20;
const MAX_STRINGS = 64 << 20;

interface Segment {
  readonly type: number;
  readonly offset: number;
  readonly address: number;
  readonly fileSize: number;
}

/** Undefined when the bytes are not ELF at all; FormatError when they begin as ELF and are damaged. */
export function readElfDependencies(source: ByteSource): ElfDependencies | undefined {
  if (source.size < 4 || view(source, "magic", 0, 4).getUint32(0) !== MAGIC) return undefined;
  const head = view(source, "header", 0, 52);
  const wide = oneOf(head.getUint8(4), "class") === 2;
  const little = oneOf(head.getUint8(5), "byte order") === 1;
  const read = new Fields(source, wide, little);
  const segments = readSegments(read);

  const interp = segments.find((segment) => segment.type === PT_INTERP);
  if (interp !== undefined && interp.fileSize > MAX_INTERPRETER) throw fail("interpreter", "is over 4096 bytes");
  const interpreter =
    interp && byteString(bytes(source, "interpreter", interp.offset, interp.fileSize)).split("\0", 1)[0];

  const dynamic = segments.find((segment) => segment.type === PT_DYNAMIC);
  if (dynamic === undefined) return { interpreter, needed: [], searchPath: [] };
  return { interpreter, ...readDynamic(read, segments, dynamic) };
}

function readSegments(read: Fields): Segment[] {
  const { wide } = read;
  const table = read.word("program header offset", wide ? 32 : 28);
  const entrySize = read.half("program header size", wide ? 54 : 42);
  const count = read.half("program header count", wide ? 56 : 44);
  const least = wide ? 56 : 32;
  if (count > MAX_PROGRAM_HEADERS) throw fail("program header count", `${count} is over ${MAX_PROGRAM_HEADERS}`);
  if (count > 0 && entrySize < least)
    throw fail("program header size", `must be at least ${least}: it is ${entrySize}`);
  return Array.from({ length: count }, (_, i) => {
    const at = table + i * entrySize;
    return {
      type: read.int("program header", at),
      offset: read.word("program header", at + (wide ? 8 : 4)),
      address: read.word("program header", at + (wide ? 16 : 8)),
      fileSize: read.word("program header", at + (wide ? 32 : 16)),
    };
  });
}

function readDynamic(read: Fields, segments: readonly Segment[], dynamic: Segment) {
  if (dynamic.fileSize > MAX_DYNAMIC) throw fail("dynamic section", `is over ${MAX_DYNAMIC} bytes`);
  const step = read.wide ? 16 : 8;
  const entries: { tag: number; value: number }[] = [];
  for (let at = dynamic.offset; at + step <= dynamic.offset + dynamic.fileSize; at += step) {
    const tag = read.int("dynamic section", read.wide && !read.little ? at + 4 : at);
    if (tag === DT_NULL) break;
    // Other tags have values of all bits (flags, addresses of the address space's end): they are not read.
    const known = [DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_RPATH, DT_RUNPATH].includes(tag);
    if (known) entries.push({ tag, value: read.word("dynamic section", at + step / 2) });
  }
  const value = (tag: number) => entries.find((entry) => entry.tag === tag)?.value;
  const address = value(DT_STRTAB);
  const size = value(DT_STRSZ);
  if (address === undefined || size === undefined) return { needed: [], searchPath: [] };
  if (size > MAX_STRINGS) throw fail("string table", `${size} bytes are over ${MAX_STRINGS}`);
  const home = segments.find((s) => s.type === PT_LOAD && address >= s.address && address < s.address + s.fileSize);
  if (home === undefined) throw fail("string table", "is outside of the loaded segments");
  const strings = bytes(read.source, "string table", address - home.address + home.offset, size);
  const text = (offset: number) => {
    const end = strings.indexOf(0, offset);
    if (offset >= size || end < 0) throw fail("string table", `has no string at ${offset}`);
    return byteString(strings.subarray(offset, end));
  };
  const path = value(DT_RUNPATH) ?? value(DT_RPATH);
  return {
    needed: entries.filter((entry) => entry.tag === DT_NEEDED).map((entry) => text(entry.value)),
    searchPath: path === undefined ? [] : text(path).split(":").filter(Boolean),
  };
}

/** Numbers of the object's class and byte order. */
class Fields {
  readonly source: ByteSource;
  readonly wide: boolean;
  readonly little: boolean;

  constructor(source: ByteSource, wide: boolean, little: boolean) {
    this.source = source;
    this.wide = wide;
    this.little = little;
  }

  half(field: string, offset: number): number {
    return view(this.source, field, offset, 2).getUint16(0, this.little);
  }
  int(field: string, offset: number): number {
    return view(this.source, field, offset, 4).getUint32(0, this.little);
  }
  /** An address or offset: 4 bytes in class 1, 8 in class 2. */
  word(field: string, offset: number): number {
    if (!this.wide) return this.int(field, offset);
    const value = view(this.source, field, offset, 8).getBigUint64(0, this.little);
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw fail(field, `0x${value.toString(16)} is over 2^53`, offset);
    return Number(value);
  }
}

function oneOf(value: number, field: string): number {
  if (value !== 1 && value !== 2) throw fail(field, `must be 1 or 2: it is ${value}`);
  return value;
}

function bytes(source: ByteSource, field: string, offset: number, length: number): Uint8Array {
  if (offset + length > source.size) throw fail(field, `ends after the ${source.size} bytes of the file`, offset);
  return source.read(offset, length);
}

function view(source: ByteSource, field: string, offset: number, length: number): DataView {
  const read = bytes(source, field, offset, length);
  return new DataView(read.buffer, read.byteOffset, read.byteLength);
}

function fail(field: string, problem: string, offset?: number): FormatError {
  return new FormatError("ELF", field, problem, offset === undefined ? {} : { offset });
}
