/**
 * Pushing blobs and manifests: OCI distribution specification 1.1, "Push". A blob's bytes come once, in order, from an
 * iterable whose length nobody knows; they travel in pieces that are held until the registry has confirmed them, so that
 * a broken connection costs a piece and not the blob. What fits into one piece is one PUT.
 */
import { ShaleError } from "../errors/index.ts";
import { type Descriptor, type Digest, digestAlgorithm, digestOf, type Reference } from "../oci/index.ts";
import { explain, Failure } from "./failure.ts";
import type { Bytes } from "./held-pieces.ts";
import { checkDigest, isPresent, locationOf, type PushTarget, send } from "./push-requests.ts";
import { type PushBlobOptions, Upload, UploadLost } from "./upload.ts";

export type { PushBlobOptions } from "./upload.ts";

export interface PushedBlob {
  readonly digest: Digest;
  readonly size: number;
  readonly how: "present" | "mounted" | "uploaded";
}

/** How often an upload begins anew when the registry has forgotten it. */
const MAX_RESTARTS = 4;

/**
 * See RegistryClient.pushBlob. `source` is a function where the bytes can be had again: then an upload that the registry
 * has lost (its restart; registries that don't keep part of a piece) begins anew. Otherwise it fails with UNAVAILABLE.
 */
export async function pushBlob(
  target: PushTarget,
  source: Bytes | (() => Bytes),
  options: PushBlobOptions,
): Promise<PushedBlob> {
  const { expected, mountFrom } = options;
  try {
    let opened: URL | undefined;
    if (expected !== undefined) {
      if (await isPresent(target, expected, options)) return { ...expected, how: "present" };
      if (mountFrom !== undefined && mountFrom !== target.repository) {
        const mount = await tryMount(target, expected.digest, mountFrom, options);
        if (mount === "mounted") return { ...expected, how: "mounted" };
        opened = mount;
      }
    }
    let inPieces = true;
    for (let restarts = 0; ; restarts++) {
      const again = typeof source === "function" && restarts < MAX_RESTARTS;
      const upload = new Upload(target, options, opened);
      opened = undefined;
      try {
        if (typeof source !== "function") return { ...(await upload.run(source)), how: "uploaded" };
        return { ...(await (inPieces ? upload.run(source()) : upload.runWhole(source))), how: "uploaded" };
      } catch (error) {
        if (!(error instanceof Failure)) await upload.cancel();
        if (!(error instanceof UploadLost) || !again) throw error;
        // twice may be a restart of the registry; more, and it does not know how to go on
        if (error.refused || restarts > 0) inPieces = false;
        options.onBytes?.(-upload.confirmed);
        target.log({ kind: "retry", host: error.host, reason: error.reason, attempt: restarts + 1, waitMs: 0 });
      }
    }
  } catch (error) {
    throw error instanceof Failure ? explain(target.act, [error]) : error;
  }
}

/** See RegistryClient.pushManifest. */
export async function pushManifest(
  target: PushTarget,
  reference: Reference,
  { bytes, mediaType }: { readonly bytes: Uint8Array; readonly mediaType: string },
  { signal }: { readonly signal?: AbortSignal },
): Promise<Descriptor> {
  const digest = digestOf(bytes, reference.digest === undefined ? "sha256" : digestAlgorithm(reference.digest));
  if (reference.digest !== undefined && reference.digest !== digest) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot ${target.act}: the manifest's digest is ${digest}`);
  }
  try {
    const name = reference.digest ?? reference.tag ?? "latest";
    const response = await send(target, `/${target.repository}/manifests/${name}`, signal, {
      method: "PUT",
      body: bytes,
      headers: { "content-type": mediaType },
      accepts: [200, 201, 202],
    });
    await response.discard();
    checkDigest(response, digest);
  } catch (error) {
    throw error instanceof Failure ? explain(target.act, [error]) : error;
  }
  return { mediaType, digest, size: bytes.length, annotations: {}, urls: [] };
}

/** "mounted", or the upload that the registry opened in its place; undefined where it would not hear of it. */
async function tryMount(
  target: PushTarget,
  digest: Digest,
  from: string,
  { signal }: PushBlobOptions,
): Promise<"mounted" | URL | undefined> {
  const query = new URLSearchParams({ mount: digest, from });
  try {
    const response = await send(target, `/${target.repository}/blobs/uploads/?${query}`, signal, {
      method: "POST",
      access: { actions: "pull,push", alsoPull: from },
      accepts: [201, 202],
    });
    await response.discard();
    return response.status === 201 ? "mounted" : locationOf(response);
  } catch (error) {
    // who may not read there gets a refusal from some registries and token servers; the bytes are at hand
    if (error instanceof Failure && (error.code === "UNAUTHENTICATED" || (error.status ?? 500) < 500)) return undefined;
    throw error;
  }
}
