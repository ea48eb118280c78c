/** containerd's content store, from the side: as files where its root can be seen from here, else through its socket. */
import { findContainerdBlob } from "../../images/containerd-content.ts";
import type { Digest } from "../../oci/index.ts";
import { RpcClient } from "../../rpc/index.ts";
import type { FeedSource } from "../../store/index.ts";
import { type ContentMethods, contentMethods } from "../services/messages.ts";

/** A layer of tens of GB, read from a busy disk. */
const READ_TIMEOUT_MS = 3_600_000;

export class ContainerdContent implements Disposable {
  readonly root: string;
  readonly #address: string;
  #client: RpcClient | undefined;
  #methods: ContentMethods | undefined;

  /** `root` is containerd's, `address` its socket; neither has to exist. */
  constructor({ root, address }: { readonly root: string; readonly address: string }) {
    this.root = root;
    this.#address = address;
  }

  find(digest: Digest, size: number): FeedSource | undefined {
    return findContainerdBlob(this.root, digest, size);
  }

  /** The bytes from `offset`, unverified. NOT_FOUND when this namespace has no such blob, UNAVAILABLE without containerd. */
  async *read(namespace: string, digest: Digest, offset: number, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    this.#client ??= new RpcClient(this.#address);
    this.#methods ??= contentMethods();
    const options = { signal, headers: { "containerd-namespace": namespace }, timeoutMs: READ_TIMEOUT_MS };
    for await (const { data } of this.#client.stream(this.#methods.Read, { digest, offset }, options)) yield data;
  }

  [Symbol.dispose](): void {
    this.#client?.[Symbol.dispose]();
  }
}
