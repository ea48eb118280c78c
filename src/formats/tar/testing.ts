/** For tests of this and other modules: decodes a whole tar into values, and makes tars from descriptions. Pure. */
import { TarDecoder, type TarDecoderOptions } from "./decoder.ts";
import { encodeTarHeader, TAR_END, tarPadding } from "./encoder.ts";
import type { TarEntry, TarHeader } from "./entry.ts";
import { checksum, FIELDS } from "./header.ts";

export interface DecodedEntry extends TarEntry {
  readonly payload: Buffer;
}

export interface DecodedTar {
  readonly entries: readonly DecodedEntry[];
  /** Everything that went to raw(). */
  readonly raw: Buffer;
  /** raw() and payload() as they came: the tar itself. */
  readonly all: Buffer;
}

/** Decodes chunks and checks the order of calls that TarSink promises. */
export function decodeTar(chunks: readonly Uint8Array[], options?: TarDecoderOptions): DecodedTar {
  const entries: DecodedEntry[] = [];
  const raw: Buffer[] = [];
  const all: Buffer[] = [];
  let open: { entry: TarEntry; payload: Buffer[] } | undefined;
  const decoder = new TarDecoder(
    {
      raw(bytes) {
        raw.push(Buffer.from(bytes));
        all.push(Buffer.from(bytes));
      },
      entry(entry) {
        if (open !== undefined) throw new Error("entry() before endEntry()");
        open = { entry, payload: [] };
      },
      payload(bytes) {
        if (open === undefined || bytes.length === 0) throw new Error("payload() outside an entry, or empty");
        open.payload.push(Buffer.from(bytes));
        all.push(Buffer.from(bytes));
      },
      endEntry() {
        if (open === undefined) throw new Error("endEntry() without entry()");
        entries.push({ ...open.entry, payload: Buffer.concat(open.payload) });
        open = undefined;
      },
    },
    options,
  );
  for (const chunk of chunks) decoder.write(chunk);
  decoder.end();
  return { entries, raw: Buffer.concat(raw), all: Buffer.concat(all) };
}

/** A header with everything that is not given at its plainest. */
export function header(fields: Partial<TarHeader> & { readonly path: string }): TarHeader {
  return {
    type: "file",
    linkTarget: "",
    mode: fields.type === "directory" ? 0o755 : 0o644,
    uid: 0,
    gid: 0,
    size: 0,
    mtimeSeconds: 0,
    mtimeNanoseconds: 0,
    rdevMajor: 0,
    rdevMinor: 0,
    xattrs: [],
    ...fields,
  };
}

/** One entry with its payload and padding. */
export function entryBytes(fields: Partial<TarHeader> & { readonly path: string }, payload = ""): Buffer {
  const bytes = Buffer.from(payload, "latin1");
  const head = encodeTarHeader(header({ size: bytes.length, ...fields }));
  return Buffer.concat([head, bytes, tarPadding(bytes.length)]);
}

export function tarOf(...parts: readonly Uint8Array[]): Buffer {
  return Buffer.concat([...parts, TAR_END]);
}

export interface BlockFields {
  readonly name?: string;
  readonly type?: string;
  readonly size?: number;
  readonly linkName?: string;
  /** Default: ustar. "" is v7. */
  readonly magic?: string;
  /** Written last, as they are, by offset. */
  readonly at?: Readonly<Record<number, string>>;
}

/** A header block by hand, for what the encoder does not write; the checksum is right. */
export function block(fields: BlockFields): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.write(fields.name ?? "name", FIELDS.name.offset, "latin1");
  for (const field of [FIELDS.mode, FIELDS.uid, FIELDS.gid]) bytes.write("0000644\0", field.offset, "latin1");
  bytes.write((fields.size ?? 0).toString(8).padStart(11, "0"), FIELDS.size.offset, "latin1");
  bytes.write("00000000000", FIELDS.mtime.offset, "latin1");
  bytes.write(fields.type ?? "0", FIELDS.type.offset, "latin1");
  bytes.write(fields.linkName ?? "", FIELDS.linkName.offset, "latin1");
  bytes.write(fields.magic ?? "ustar\x0000", FIELDS.magic.offset, "latin1");
  for (const [offset, text] of Object.entries(fields.at ?? {})) bytes.write(text, Number(offset), "latin1");
  return withChecksum(bytes);
}

export const GNU_MAGIC = "ustar  \0";

/** Puts the right checksum into a header block. */
export function withChecksum(bytes: Buffer): Buffer {
  bytes.write(`${checksum(bytes, 0).toString(8).padStart(6, "0")}\0 `, FIELDS.checksum.offset, "latin1");
  return bytes;
}

/** A body padded to whole blocks. */
export function padded(body: string | Uint8Array): Buffer {
  const bytes = typeof body === "string" ? Buffer.from(body, "latin1") : Buffer.from(body);
  return Buffer.concat([bytes, tarPadding(bytes.length)]);
}

/** An extended header: "x", "g", "L" or "K". */
export function meta(type: string, body: string): Buffer {
  return Buffer.concat([block({ name: "meta", type, size: body.length }), padded(body)]);
}

/** "LENGTH KEY=VALUE\n" for each pair. */
export function records(...pairs: readonly (readonly [string, string])[]): string {
  return pairs
    .map(([key, value]) => {
      const rest = ` ${key}=${value}\n`;
      let length = rest.length + 1;
      while (`${length}`.length + rest.length !== length) length++;
      return `${length}${rest}`;
    })
    .join("");
}
