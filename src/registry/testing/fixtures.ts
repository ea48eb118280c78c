import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Descriptor, type Digest, parseReference, type Reference } from "../../oci/index.ts";
import { RegistryClient, type RegistryEvent, type RegistryOptions } from "../index.ts";
import type { ScriptedServer, Stored } from "./scripted-server.ts";

/** Waits short enough for tests. */
export const FAST_RETRY = { baseMs: 1, maxMs: 4 } as const;

export interface TestClient extends AsyncDisposable {
  readonly client: RegistryClient;
  readonly events: readonly RegistryEvent[];
}

/** A client that reads nothing of this machine's configuration. */
export function testClient(options: RegistryOptions = {}): TestClient {
  const events: RegistryEvent[] = [];
  const client = new RegistryClient({
    env: { HOME: "/nonexistent", XDG_RUNTIME_DIR: "/nonexistent" },
    hostsDirs: [],
    stallTimeoutMs: 300,
    log: (event) => events.push(event),
    ...options,
    retry: { ...FAST_RETRY, ...options.retry },
  });
  return { client, events, [Symbol.asyncDispose]: () => client[Symbol.asyncDispose]() };
}

export function referenceTo(server: ScriptedServer, rest: string): Reference {
  return parseReference(`${server.host}/${rest}`);
}

export function descriptorOf(stored: Stored): Descriptor {
  const { mediaType, size } = stored;
  return { mediaType, size, digest: stored.digest as Digest, annotations: {}, urls: [] };
}

export async function collect(chunks: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for await (const chunk of chunks) parts.push(chunk);
  return Buffer.concat(parts);
}

export const someBytes = (size: number): Buffer => randomBytes(size);

/** An image manifest over descriptors of stored blobs. */
export function manifestOf(config: Stored, layers: readonly Stored[]): object {
  const plain = ({ mediaType, digest, size }: Stored) => ({ mediaType, digest, size });
  return {
    schemaVersion: 2,
    mediaType: "application/vnd.oci.image.manifest.v1+json",
    config: plain(config),
    layers: layers.map(plain),
  };
}

export const CONFIG_TYPE = "application/vnd.oci.image.config.v1+json";

/** A directory that goes away with its scope. */
export function temporaryDirectory(): Disposable & { readonly path: string } {
  const path = mkdtempSync(join(tmpdir(), "shale-registry-"));
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }) };
}
