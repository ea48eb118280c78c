/** Identifiers of exported files that nobody gave: from the image's digest, so that the same export gives the same bytes. */
import { hash } from "node:crypto";
import { ShaleError } from "../errors/index.ts";
import { MAX_SALT_SIZE } from "../formats/verity/index.ts";

/** What an identifier is for: two of one export must not be equal. */
export type Purpose = "file system" | "verity superblock";

/** A UUID of version 8 (RFC 9562, section 5.8): 16 bytes. */
export function deriveUuid(digest: string, purpose: Purpose): Uint8Array {
  const uuid = derive(digest, `${purpose} uuid`).subarray(0, 16);
  uuid[6] = (uuid[6]! & 0x0f) | 0x80;
  uuid[8] = (uuid[8]! & 0x3f) | 0x80;
  return Uint8Array.from(uuid);
}

/** 32 bytes, as veritysetup makes them. */
export function deriveSalt(digest: string): Uint8Array {
  return Uint8Array.from(derive(digest, "verity salt"));
}

function derive(digest: string, what: string): Buffer {
  return hash("sha256", `shale ${what}\n${digest}\n`, "buffer");
}

export function formatUuid(uuid: Uint8Array): string {
  return Buffer.from(uuid)
    .toString("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** INVALID_ARGUMENT unless it is 32 hexadecimal digits, with or without hyphens. */
export function parseUuid(text: string): Uint8Array {
  const digits = text.replaceAll("-", "");
  if (!/^[0-9a-fA-F]{32}$/.test(digits))
    throw new ShaleError("INVALID_ARGUMENT", `Cannot use the UUID ${text}: it is none`);
  return Uint8Array.from(Buffer.from(digits, "hex"));
}

/** Hexadecimal; "-" or nothing is no salt, as veritysetup has it. INVALID_ARGUMENT otherwise, or over 256 bytes. */
export function parseSalt(text: string): Uint8Array {
  if (text === "-") return new Uint8Array(0);
  if (!/^(?:[0-9a-fA-F]{2})*$/.test(text)) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot use the salt ${text}: it is not hexadecimal`);
  }
  if (text.length / 2 > MAX_SALT_SIZE) {
    const size = text.length / 2;
    throw new ShaleError("INVALID_ARGUMENT", `Cannot use a salt of ${size} bytes: the limit is ${MAX_SALT_SIZE}`);
  }
  return Uint8Array.from(Buffer.from(text, "hex"));
}

/** A root hash: 64 hexadecimal digits. */
export function parseRootHash(text: string): Uint8Array {
  if (!/^[0-9a-fA-F]{64}$/.test(text)) {
    throw new ShaleError("INVALID_ARGUMENT", `Cannot use the root hash ${text}: it is not 64 hexadecimal digits`);
  }
  return Uint8Array.from(Buffer.from(text, "hex"));
}
