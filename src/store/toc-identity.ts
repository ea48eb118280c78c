/**
 * Identities of layers that are verified by their table of contents alone (docs/adr/0031).
 *
 * Everything in the store is found by a layer's diffId: images, chains, merged images, mounts. A layer that was put together
 * from an eStargz TOC has none that anybody computed, only one that a config claims; so it is kept under the digest of its
 * TOC, written in a way that no diffId is written ("toc+sha256:"). `parseDiffId` refuses that, so no config, label or
 * command can name such a layer, nothing that asks for a diffId is ever answered with one, and chain ids that have one in
 * their chain are those of no image. The identity itself is the mark: there is no column beside it to be forgotten.
 */
import { toHex } from "../bytes/index.ts";
import type { ChainId, DiffId, Digest } from "../oci/index.ts";

const PREFIX = "toc+sha256:";

/** `digest`: SHA-256 of the TOC's JSON, verified. Equal TOCs give equal layers. */
export function tocIdentity(digest: Uint8Array): DiffId {
  return `${PREFIX}${toHex(digest)}` as DiffId;
}

/** Whether a layer is verified by its TOC; else what it is kept under is the digest of its tar, which we computed. */
export function isTocIdentity(identity: DiffId | ChainId | string): boolean {
  return identity.startsWith(PREFIX);
}

/** The digest of the TOC that such a layer is verified by. */
export function tocDigestOf(identity: DiffId): Digest {
  if (!isTocIdentity(identity)) throw new RangeError(`${identity} is a diffId`);
  return `sha256:${identity.slice(PREFIX.length)}` as Digest;
}

/** The same as a condition of SQL on column `diff_id`. */
export const SQL_IS_TOC_IDENTITY = `diff_id GLOB '${PREFIX}*'`;
