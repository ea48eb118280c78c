/**
 * Images that no build makes: one layer of very many entries, one of very many zeros; written as an OCI layout in one pass
 * with little memory and disk. The tar and gzip bytes are made here, independently of the code under test.
 */
import { createHash } from "node:crypto";
import { closeSync, mkdirSync, openSync, renameSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { constants, crc32, deflateRawSync } from "node:zlib";

/** Bytes of the tar that repeat `times` times. */
interface Segment {
  readonly bytes: Buffer;
  readonly times: number;
}

const BLOCK = 512;
const MIB = 1 << 20;

/** ustar header; POSIX.1-2024 pax, "ustar Interchange Format". Sizes over 8 GiB in base 256, as GNU tar writes them. */
function tarHeader(name: string, type: "0" | "5", size: number): Buffer {
  const header = Buffer.alloc(BLOCK);
  header.write(name, 0, 100, "latin1");
  header.write(type === "5" ? "0000755\0" : "0000644\0", 100);
  header.write("0000000\0", 108); // uid
  header.write("0000000\0", 116); // gid
  if (size < 8 ** 11) header.write(`${size.toString(8).padStart(11, "0")}\0`, 124);
  else {
    header.writeUInt8(0x80, 124);
    header.writeBigUInt64BE(BigInt(size), 128);
  }
  header.write("14371573260\0", 136); // mtime, any
  header.write("        ", 148); // the checksum is made with spaces in its place
  header.write(type, 156);
  header.write("ustar\u000000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return header;
}

const TAR_END: Segment = { bytes: Buffer.alloc(2 * BLOCK), times: 1 };

/** `entries` directories and files: a thousand to a directory, each file with a few bytes of its own. */
function* manyEntries(entries: number): Generator<Segment> {
  const perDirectory = 1000; // with the directory itself
  for (let first = 0; first < entries; first += perDirectory) {
    const directory = `d${String(first / perDirectory).padStart(6, "0")}/`;
    const parts = [tarHeader(directory, "5", 0)];
    for (let i = first + 1; i < Math.min(first + perDirectory, entries); i++) {
      const content = Buffer.alloc(BLOCK);
      const size = content.write(`file ${i}\n`);
      parts.push(tarHeader(`${directory}file-${i}`, "0", size), content);
    }
    yield { bytes: Buffer.concat(parts), times: 1 };
  }
  yield TAR_END;
}

/** One file of `size` zeros, a multiple of 64 MiB. */
function* manyZeros(size: number): Generator<Segment> {
  const bytes = Buffer.alloc(64 * MIB);
  if (size % bytes.length !== 0) throw new RangeError(`${size} is no multiple of ${bytes.length}`);
  yield { bytes: tarHeader("zeros", "0", size), times: 1 };
  yield { bytes, times: size / bytes.length };
  yield TAR_END;
}

export interface MadeUpImage {
  readonly title: string;
  readonly tag: string;
  /** oci:DIR:tag */
  readonly reference: string;
  readonly compressedSize: number;
}

export function makeManyEntries(directory: string, entries: number): MadeUpImage {
  const title = `layer of ${entries.toLocaleString("en")} entries`;
  return { title, ...writeLayout(directory, "entries", manyEntries(entries)) };
}

export function makeManyZeros(directory: string, size: number): MadeUpImage {
  return {
    title: `layer of ${size / 2 ** 30} GiB of zeros`,
    ...writeLayout(directory, "zeros", manyZeros(size)),
  };
}

function writeLayout(directory: string, tag: string, segments: Iterable<Segment>): Omit<MadeUpImage, "title"> {
  const blobs = join(directory, "blobs/sha256");
  mkdirSync(blobs, { recursive: true });
  const layer = writeGzip(join(directory, "layer"), segments);
  renameSync(join(directory, "layer"), join(blobs, layer.digest));
  const put = (value: unknown) => {
    const bytes = Buffer.from(JSON.stringify(value));
    const hex = createHash("sha256").update(bytes).digest("hex");
    writeFileSync(join(blobs, hex), bytes);
    return { digest: `sha256:${hex}`, size: bytes.length };
  };
  const oci = "application/vnd.oci.image";
  const config = put({
    architecture: "amd64",
    os: "linux",
    config: {},
    rootfs: { type: "layers", diff_ids: [`sha256:${layer.diffId}`] },
  });
  const manifest = put({
    schemaVersion: 2,
    mediaType: `${oci}.manifest.v1+json`,
    config: { mediaType: `${oci}.config.v1+json`, ...config },
    layers: [{ mediaType: `${oci}.layer.v1.tar+gzip`, digest: `sha256:${layer.digest}`, size: layer.size }],
  });
  const annotations = { "org.opencontainers.image.ref.name": tag };
  const index = {
    schemaVersion: 2,
    manifests: [{ mediaType: `${oci}.manifest.v1+json`, ...manifest, annotations }],
  };
  writeFileSync(join(directory, "index.json"), JSON.stringify(index));
  writeFileSync(join(directory, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  return { tag, reference: `oci:${directory}:${tag}`, compressedSize: layer.size };
}

/**
 * One ordinary gzip member (RFC 1952). Each segment is deflated by itself and ends with a full flush, after which nothing
 * refers back: that makes deflating a repeated segment once enough.
 */
function writeGzip(path: string, segments: Iterable<Segment>): { digest: string; diffId: string; size: number } {
  const file = openSync(path, "wx");
  try {
    const compressed = createHash("sha256");
    const uncompressed = createHash("sha256");
    let size = 0;
    let crc = 0;
    let length = 0;
    const write = (bytes: Uint8Array) => {
      compressed.update(bytes);
      for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done);
      size += bytes.length;
    };
    write(Buffer.from([0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255])); // deflate, no flags, no time, unknown system
    for (const { bytes, times } of segments) {
      const deflated = deflateRawSync(bytes, { finishFlush: constants.Z_FULL_FLUSH });
      for (let i = 0; i < times; i++) {
        write(deflated);
        uncompressed.update(bytes);
        crc = crc32(bytes, crc);
        length += bytes.length;
      }
    }
    write(deflateRawSync(Buffer.alloc(0))); // an empty last block ends the stream
    const trailer = Buffer.alloc(8);
    trailer.writeUInt32LE(crc, 0);
    trailer.writeUInt32LE(length % 2 ** 32, 4);
    write(trailer);
    return { digest: compressed.digest("hex"), diffId: uncompressed.digest("hex"), size };
  } finally {
    closeSync(file);
  }
}
