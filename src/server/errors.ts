/**
 * Error answers of the OCI distribution specification v1.1, "Error Codes": a JSON body {"errors":[{code,message,detail}]}.
 */
import { ShaleError } from "../errors/index.ts";

/** The codes of the specification that a read-only registry needs, with the status that goes with each. */
const STATUS = {
  BLOB_UNKNOWN: 404,
  MANIFEST_UNKNOWN: 404,
  NAME_UNKNOWN: 404,
  NAME_INVALID: 400,
  DIGEST_INVALID: 400,
  MANIFEST_INVALID: 400,
  /** Not in the specification's list; distribution/distribution answers it to a bad `n`, and clients know it. */
  PAGINATION_NUMBER_INVALID: 400,
  DENIED: 403,
  UNSUPPORTED: 405,
  TOOMANYREQUESTS: 429,
  UNKNOWN: 500,
} as const;

export type RegistryErrorCode = keyof typeof STATUS;

/** An answer other than success. `message` goes to the client: it must not tell paths of this machine. */
export class RegistryError extends Error {
  readonly code: RegistryErrorCode;
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;

  constructor(
    code: RegistryErrorCode,
    message: string,
    options: { readonly status?: number; readonly headers?: Readonly<Record<string, string>> } = {},
  ) {
    super(message);
    this.name = "RegistryError";
    this.code = code;
    this.status = options.status ?? STATUS[code];
    this.headers = options.headers ?? {};
  }

  body(): Uint8Array {
    return Buffer.from(`${JSON.stringify({ errors: [{ code: this.code, message: this.message, detail: null }] })}\n`);
  }
}

/**
 * What the client hears when a provider throws: the kind of failure, not its text, which may tell paths of this
 * machine. The text goes to the log.
 */
export function publicError(error: unknown): RegistryError {
  if (error instanceof RegistryError) return error;
  if (ShaleError.is(error, "UNAVAILABLE") || ShaleError.is(error, "ABORTED") || ShaleError.is(error, "CANCELLED")) {
    return new RegistryError("UNKNOWN", "not available at the moment", { status: 503 });
  }
  if (ShaleError.is(error, "RESOURCE_EXHAUSTED")) return new RegistryError("TOOMANYREQUESTS", "over a limit");
  return new RegistryError("UNKNOWN", "internal error");
}
