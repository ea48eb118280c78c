/** An OCI archive, a tar of a layout: blobs as they come, then index.json and oci-layout. podman, skopeo and docker read it. */
import { createHash } from "node:crypto";
import { type BlobName, CONTAINERD_NAME, REF_NAME } from "../archives/index.ts";
import { throwIfAborted } from "../async/index.ts";
import { ShaleError } from "../errors/index.ts";
import { encodeTarHeader, TAR_END, tarPadding } from "../formats/tar/index.ts";
import { type Descriptor, digestHex, encodePlatform, formatDigest, MediaType } from "../oci/index.ts";
import type { Document } from "../store/index.ts";
import type { Bytes, ConvertTarget, WriteOptions } from "./convert-target.ts";
import { PartialFile } from "./partial-file.ts";

const HEADER_SIZE = 512;
/** What the size field of a header of one block can say: 11 octal digits. */
const MAX_MEMBER = 8 ** 11;

export class ArchiveTarget implements ConvertTarget {
  readonly #file: PartialFile;
  readonly #names: { readonly tag?: string; readonly fullName?: string };
  readonly #written = new Set<string>();

  static async open(
    path: string,
    names: { readonly tag?: string; readonly fullName?: string },
    options: { readonly signal?: AbortSignal },
  ): Promise<ArchiveTarget> {
    return new ArchiveTarget(await PartialFile.open(path, options), names);
  }

  private constructor(file: PartialFile, names: { readonly tag?: string; readonly fullName?: string }) {
    this.#file = file;
    this.#names = names;
  }

  /** Leaves room for a header, which is written when the blob's name and size are known. */
  async writeBlob(source: Bytes, { expected, signal }: WriteOptions): Promise<BlobName> {
    const start = this.#file.size;
    this.#file.write(new Uint8Array(HEADER_SIZE));
    let size = 0;
    const hash = createHash("sha256");
    try {
      for await (const piece of source) {
        throwIfAborted(signal);
        hash.update(piece);
        this.#file.write(piece);
        size += piece.length;
      }
    } catch (error) {
      this.#file.cut(start); // who asks again, for another form of the layer, begins where this began
      throw error;
    }
    const digest = formatDigest("sha256", hash.digest());
    if (expected !== undefined && (digest !== expected.digest || size !== expected.size)) {
      throw new ShaleError("DATA_LOSS", `Cannot write ${expected.digest}: what came is ${digest}`);
    }
    if (this.#written.has(digest)) {
      this.#file.cut(start);
      return { digest, size };
    }
    this.#written.add(digest);
    if (size >= MAX_MEMBER) {
      const problem = `${digest} has ${size} bytes, and an archive written in one pass takes less than ${MAX_MEMBER}`;
      throw new ShaleError("RESOURCE_EXHAUSTED", `Cannot write the archive: ${problem}`, {
        hint: "Write a layout instead: a directory has no such limit",
      });
    }
    this.#file.write(tarPadding(size));
    this.#file.patch(start, header(`blobs/sha256/${digestHex(digest)}`, size));
    return { digest, size };
  }

  async writeDocument({ digest, bytes }: Document): Promise<void> {
    if (this.#written.has(digest)) return;
    this.#written.add(digest);
    this.#member(`blobs/${digest.slice(0, digest.indexOf(":"))}/${digestHex(digest)}`, bytes);
  }

  async publish({ mediaType, digest, size, platform }: Descriptor): Promise<void> {
    const { tag, fullName } = this.#names;
    const annotations = {
      ...(tag === undefined ? {} : { [REF_NAME]: tag }),
      ...(fullName === undefined ? {} : { [CONTAINERD_NAME]: fullName }),
    };
    const entry = {
      ...{ mediaType, digest, size },
      ...(platform === undefined ? {} : { platform: encodePlatform(platform) }),
      ...(Object.keys(annotations).length === 0 ? {} : { annotations }),
    };
    const index = { schemaVersion: 2, mediaType: MediaType.OCI_INDEX, manifests: [entry] };
    this.#member("index.json", Buffer.from(JSON.stringify(index)));
    this.#member("oci-layout", Buffer.from('{"imageLayoutVersion":"1.0.0"}'));
    this.#file.write(TAR_END);
    this.#file.publish();
  }

  [Symbol.dispose](): void {
    this.#file[Symbol.dispose]();
  }

  #member(path: string, bytes: Uint8Array): void {
    this.#file.write(header(path, bytes.length));
    this.#file.write(bytes);
    this.#file.write(tarPadding(bytes.length));
  }
}

/** One block: the path is short and the size below MAX_MEMBER. */
function header(path: string, size: number): Uint8Array {
  return encodeTarHeader({
    ...{ type: "file", path, linkTarget: "", mode: 0o444, uid: 0, gid: 0, size },
    ...{ mtimeSeconds: 0, mtimeNanoseconds: 0, rdevMajor: 0, rdevMinor: 0, xattrs: [] },
  });
}
