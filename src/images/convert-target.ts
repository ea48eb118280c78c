/** Where a converted image goes: an OCI layout, an archive of one, or a registry. Blobs come one at a time, sizes unknown. */
import { type BlobName, OciLayoutWriter } from "../archives/index.ts";
import { ShaleError } from "../errors/index.ts";
import { type Descriptor, formatReference, type Reference } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import type { Document } from "../store/index.ts";
import { ArchiveTarget } from "./archive-target.ts";
import { findTagged } from "./names.ts";

export type ConvertOutput =
  | { readonly kind: "layout"; readonly directory: string; readonly tag?: string }
  | { readonly kind: "archive"; readonly path: string }
  | { readonly kind: "registry"; readonly reference: Reference; readonly client: () => Promise<RegistryClient> };

export type Bytes = Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

export interface WriteOptions {
  readonly expected?: BlobName;
  readonly signal?: AbortSignal;
}

export interface ConvertTarget extends Disposable {
  /** Stores bytes under their digest. With `expected`, what is there already is kept and `source` may stay unread. */
  writeBlob(source: Bytes, options: WriteOptions): Promise<BlobName>;
  /** A manifest, index or config, after everything that it names. */
  writeDocument(document: Document, options: { readonly signal?: AbortSignal }): Promise<void>;
  /** Names what was written; when it resolves, the image is there, complete and durable. */
  publish(target: Descriptor, document: Document, options: { readonly signal?: AbortSignal }): Promise<void>;
}

/** `name` is the image's in the store: what a layout's entry is called unless the output says otherwise. */
export async function openTarget(
  output: ConvertOutput,
  name: string,
  options: { readonly signal?: AbortSignal },
): Promise<ConvertTarget> {
  switch (output.kind) {
    case "layout":
      return new LayoutTarget(await OciLayoutWriter.open(output.directory, options), namesOf(name, output.tag));
    case "archive":
      return await ArchiveTarget.open(output.path, namesOf(name, undefined), options);
    case "registry":
      return new RegistryTarget(await output.client(), output.reference);
  }
}

function namesOf(name: string, tag: string | undefined): { readonly tag?: string; readonly fullName?: string } {
  if (tag !== undefined) return { tag };
  const reference = findTagged(name);
  return reference === undefined ? {} : { tag: reference.tag, fullName: formatReference(reference) };
}

class LayoutTarget implements ConvertTarget {
  readonly #writer: OciLayoutWriter;
  readonly #names: { readonly tag?: string; readonly fullName?: string };

  constructor(writer: OciLayoutWriter, names: { readonly tag?: string; readonly fullName?: string }) {
    this.#writer = writer;
    this.#names = names;
  }

  writeBlob(source: Bytes, options: WriteOptions): Promise<BlobName> {
    return this.#writer.writeBlob(source, options);
  }

  async writeDocument({ digest, bytes }: Document): Promise<void> {
    await this.#writer.writeBlob([bytes], { expected: { digest, size: bytes.length } });
  }

  async publish(target: Descriptor): Promise<void> {
    this.#writer.addImage(target, this.#names);
    this.#writer.commit();
  }

  [Symbol.dispose](): void {
    this.#writer.close();
  }
}

class RegistryTarget implements ConvertTarget {
  readonly #client: RegistryClient;
  readonly #reference: Reference;

  constructor(client: RegistryClient, reference: Reference) {
    if (reference.tag === undefined || reference.digest !== undefined) {
      throw new ShaleError(
        "INVALID_ARGUMENT",
        `Cannot push to ${formatReference(reference)}: it needs a tag, and no digest`,
      );
    }
    this.#client = client;
    this.#reference = reference;
  }

  async writeBlob(source: Bytes, options: WriteOptions): Promise<BlobName> {
    const { digest, size } = await this.#client.pushBlob(this.#reference, source, options);
    return { digest, size };
  }

  async writeDocument(document: Document, options: { readonly signal?: AbortSignal }): Promise<void> {
    if (document.mediaType.includes("config") || document.mediaType.includes("container.image")) {
      const { digest, bytes } = document;
      await this.#client.pushBlob(this.#reference, [bytes], { expected: { digest, size: bytes.length }, ...options });
      return;
    }
    // by digest: the tag is given last, to what leads to all of it
    const { host, repository } = this.#reference;
    await this.#client.pushManifest({ host, repository, digest: document.digest }, document, options);
  }

  async publish(_: Descriptor, document: Document, options: { readonly signal?: AbortSignal }): Promise<void> {
    await this.#client.pushManifest(this.#reference, document, options);
  }

  /** The client is its owner's to close. */
  [Symbol.dispose](): void {}
}
