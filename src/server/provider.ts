/**
 * What a registry serves. The server asks for names that it has checked against the grammar of the specification, and
 * does all of HTTP; a provider only knows content.
 */
import type { Descriptor, Digest } from "../oci/index.ts";

export interface ServedManifest {
  readonly descriptor: Descriptor;
  /** Exactly the bytes whose digest the descriptor has. */
  readonly bytes: Uint8Array;
}

export interface ServedBlob {
  /** Bytes. */
  readonly size: number;
  /** Content-Type of the answer; application/octet-stream when absent. */
  readonly mediaType?: string;
  /**
   * Bytes `start` up to, not including, `end`, in pieces of any size; about 64 KiB to 1 MiB is good. Each piece belongs
   * to the server once it is yielded (the socket may hold it after the next one is asked for): don't reuse its buffer.
   * The iterator is returned early when the client goes away. Fewer or more bytes than asked for cut the connection.
   */
  read(
    start: number,
    end: number,
    options: { readonly signal: AbortSignal },
  ): AsyncIterable<Uint8Array> | Iterable<Uint8Array>;
  /** Called once, whether the blob was read or not. */
  close?(): void | Promise<void>;
}

type Maybe<T> = T | undefined | Promise<T | undefined>;
type Names = Iterable<string> | Promise<Iterable<string>>;

export interface ContentProvider {
  /** `reference` is a tag or a digest, by grammar. Undefined when there is none: the client gets a 404. */
  resolve(repository: string, reference: string, options: { readonly signal: AbortSignal }): Maybe<ServedManifest>;
  openBlob(repository: string, digest: Digest, options: { readonly signal: AbortSignal }): Maybe<ServedBlob>;
  /** In any order; undefined when there is no such repository. */
  listTags(repository: string): Maybe<Iterable<string>>;
  /** In any order. */
  listRepositories(): Names;
}
