/**
 * Content digests as the OCI image specification writes them: "algorithm:lower-case hexadecimal" (descriptor.md, Digests).
 */
import { createHash, type Hash } from "node:crypto";
import { FormatError, ShaleError } from "../errors/index.ts";

declare const digestBrand: unique symbol;
declare const diffIdBrand: unique symbol;
declare const chainIdBrand: unique symbol;

/** Digest of bytes as they travel: a manifest, a config, a (compressed) layer. "sha256:..." or "sha512:...". */
export type Digest = string & { readonly [digestBrand]: true };
/** Digest of a layer's uncompressed tar. Always SHA-256. */
export type DiffId = string & { readonly [diffIdBrand]: true };
/** Digest of a stack of layers, lowest first (image specification, config.md, Layer ChainID). Always SHA-256. */
export type ChainId = string & { readonly [chainIdBrand]: true };

export type DigestAlgorithm = "sha256" | "sha512";

/** The registered algorithms of the specification that everybody writes, with the length of their hexadecimal part. */
const HEX_LENGTH: Readonly<Record<DigestAlgorithm, number>> = { sha256: 64, sha512: 128 };
/** descriptor.md: algorithm ::= algorithm-component (algorithm-separator algorithm-component)* */
const ALGORITHM = /^[a-z0-9]+(?:[+._-][a-z0-9]+)*$/;
/** No digest is longer; text from a peer is not quoted beyond this. */
const MAX_LENGTH = 7 + 128;

/**
 * Checks `text` and returns it as a Digest. FormatError: INVALID_ARGUMENT when malformed, UNIMPLEMENTED for an algorithm
 * other than sha256 and sha512. `format` and `field` name the place in the message.
 */
export function parseDigest(text: string, format = "digest", field = "value"): Digest {
  const colon = text.indexOf(":");
  const algorithm = text.slice(0, Math.max(0, colon));
  if (text.length > MAX_LENGTH || !ALGORITHM.test(algorithm)) {
    throw new FormatError(
      format,
      field,
      `must be "sha256:" and 64 hexadecimal digits: current value is ${quote(text)}`,
    );
  }
  if (!isAlgorithm(algorithm)) {
    throw new FormatError(format, field, `the algorithm ${algorithm} is not supported, only sha256 and sha512 are`, {
      code: "UNIMPLEMENTED",
    });
  }
  if (text.length !== colon + 1 + HEX_LENGTH[algorithm] || !/^[0-9a-f]+$/.test(text.slice(colon + 1))) {
    throw new FormatError(
      format,
      field,
      `must have ${HEX_LENGTH[algorithm]} lower-case hexadecimal digits after "${algorithm}:": current value is ${quote(text)}`,
    );
  }
  return text as Digest;
}

/** Like {@link parseDigest}, for the digest of an uncompressed layer: SHA-256 only. */
export function parseDiffId(text: string, format = "diffID", field = "value"): DiffId {
  const digest = parseDigest(text, format, field);
  if (digestAlgorithm(digest) !== "sha256") {
    throw new FormatError(format, field, "only sha256 is supported for the digest of an uncompressed layer", {
      code: "UNIMPLEMENTED",
    });
  }
  return text as DiffId;
}

export function isDigest(text: string): text is Digest {
  const colon = text.indexOf(":");
  const algorithm = text.slice(0, Math.max(0, colon));
  return (
    isAlgorithm(algorithm) &&
    text.length === colon + 1 + HEX_LENGTH[algorithm] &&
    /^[0-9a-f]+$/.test(text.slice(colon + 1))
  );
}

export function digestAlgorithm(digest: Digest | DiffId | ChainId): DigestAlgorithm {
  return digest.startsWith("sha512:") ? "sha512" : "sha256";
}

/** The hexadecimal part: a safe file name. */
export function digestHex(digest: Digest | DiffId | ChainId): string {
  return digest.slice(digest.indexOf(":") + 1);
}

/** "sha256:" and hexadecimal digits of a raw hash value. */
export function formatDigest(algorithm: DigestAlgorithm, hash: Uint8Array): Digest {
  if (hash.length * 2 !== HEX_LENGTH[algorithm]) throw new RangeError(`${hash.length} bytes are no ${algorithm}`);
  return `${algorithm}:${Buffer.from(hash.buffer, hash.byteOffset, hash.byteLength).toString("hex")}` as Digest;
}

export function digestOf(bytes: Uint8Array | string, algorithm: DigestAlgorithm = "sha256"): Digest {
  return formatDigest(algorithm, createHash(algorithm).update(bytes).digest());
}

/** A node hash of the digest's algorithm, for streams; compare with `formatDigest(digestAlgorithm(d), hash.digest())`. */
export function createDigestHash(digest: Digest): Hash {
  return createHash(digestAlgorithm(digest));
}

/** DATA_LOSS when `bytes` are not what `digest` names. `what` is the thing in the message ("manifest of alpine"). */
export function verifyDigest(bytes: Uint8Array, digest: Digest, what: string): void {
  const actual = digestOf(bytes, digestAlgorithm(digest));
  if (actual !== digest) {
    throw new ShaleError("DATA_LOSS", `Cannot verify ${what}: expected ${digest}, got ${actual}`);
  }
}

/**
 * Chain ids of a stack of layers, lowest first: result[i] names the stack layers[0..i].
 * ChainID(L0) = DiffID(L0); ChainID(L0|...|Ln) = SHA256(ChainID(L0|...|Ln-1) + " " + DiffID(Ln)).
 */
export function chainIds(diffIds: readonly DiffId[]): ChainId[] {
  const chain: ChainId[] = [];
  for (const diffId of diffIds) chain.push(extendChain(chain.at(-1), diffId));
  return chain;
}

/** The chain id of the whole stack. RangeError for no layers: such a stack has no id. */
export function chainIdOf(diffIds: readonly DiffId[]): ChainId {
  const last = chainIds(diffIds).at(-1);
  if (last === undefined) throw new RangeError("a stack of no layers has no chain id");
  return last;
}

/** The chain id of one more layer on top of `parent`; undefined is the empty stack. */
export function extendChain(parent: ChainId | undefined, diffId: DiffId): ChainId {
  if (parent === undefined) return diffId as string as ChainId;
  return digestOf(`${parent} ${diffId}`) as string as ChainId;
}

function isAlgorithm(text: string): text is DigestAlgorithm {
  return text === "sha256" || text === "sha512";
}

function quote(text: string): string {
  return JSON.stringify(text.length > MAX_LENGTH ? `${text.slice(0, 40)}...` : text);
}
