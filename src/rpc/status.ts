/**
 * gRPC status codes and errors of shale: one table, both ways. containerd branches on the number and shows the message.
 */
import { errnoOf, type ErrorCode, ShaleError } from "../errors/index.ts";

/** https://grpc.io/docs/guides/status-codes/ */
export const STATUS = {
  OK: 0,
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  NOT_FOUND: 5,
  ALREADY_EXISTS: 6,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  ABORTED: 10,
  OUT_OF_RANGE: 11,
  UNIMPLEMENTED: 12,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  DATA_LOSS: 15,
  UNAUTHENTICATED: 16,
} as const;

export type StatusName = keyof typeof STATUS;

/** System errors that say something about the machine; any other is UNKNOWN. */
const NAME_OF_ERRNO: Readonly<Record<string, StatusName>> = {
  ENOSPC: "RESOURCE_EXHAUSTED",
  EDQUOT: "RESOURCE_EXHAUSTED",
  EMFILE: "RESOURCE_EXHAUSTED",
  ENFILE: "RESOURCE_EXHAUSTED",
  ENOMEM: "RESOURCE_EXHAUSTED",
  EACCES: "PERMISSION_DENIED",
  EPERM: "PERMISSION_DENIED",
};

export interface Status {
  readonly name: StatusName;
  readonly code: number;
  readonly details: string;
}

/**
 * What a client is told. `deadlinePassed`: a cancellation because of the call's deadline has a code of its own. The hint goes along:
 * whoever typed `ctr` sees nothing else of this program.
 */
export function statusOf(error: unknown, options: { readonly deadlinePassed?: boolean } = {}): Status {
  const name = statusName(error);
  const shown = name === "CANCELLED" && options.deadlinePassed === true ? "DEADLINE_EXCEEDED" : name;
  return { name: shown, code: STATUS[shown], details: detailsOf(error) };
}

function statusName(error: unknown): StatusName {
  if (ShaleError.is(error)) return error.code; // the closed list has the names of gRPC
  return NAME_OF_ERRNO[errnoOf(error) ?? ""] ?? "UNKNOWN";
}

function detailsOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const hint = ShaleError.is(error) ? hintOf(error) : undefined;
  return hint === undefined ? error.message : `${error.message} (${hint})`;
}

function hintOf(error: ShaleError): string | undefined {
  return error.hint ?? (ShaleError.is(error.cause) ? hintOf(error.cause) : undefined);
}

/** What a status from a peer is as an error. DEADLINE_EXCEEDED is UNAVAILABLE: the peer was too slow. */
export function errorOf(code: number, act: string, details: string, cause: unknown): ShaleError {
  const name = (Object.keys(STATUS) as StatusName[]).find((each) => STATUS[each] === code) ?? "UNKNOWN";
  return new ShaleError(CODE_OF[name], `${act}: ${details}`, { cause });
}

const CODE_OF: Readonly<Record<StatusName, ErrorCode>> = {
  ABORTED: "ABORTED",
  ALREADY_EXISTS: "ALREADY_EXISTS",
  CANCELLED: "CANCELLED",
  DATA_LOSS: "DATA_LOSS",
  DEADLINE_EXCEEDED: "UNAVAILABLE",
  FAILED_PRECONDITION: "FAILED_PRECONDITION",
  INTERNAL: "INTERNAL",
  INVALID_ARGUMENT: "INVALID_ARGUMENT",
  NOT_FOUND: "NOT_FOUND",
  OK: "INTERNAL",
  OUT_OF_RANGE: "INVALID_ARGUMENT",
  PERMISSION_DENIED: "PERMISSION_DENIED",
  RESOURCE_EXHAUSTED: "RESOURCE_EXHAUSTED",
  UNAUTHENTICATED: "UNAUTHENTICATED",
  UNAVAILABLE: "UNAVAILABLE",
  UNIMPLEMENTED: "UNIMPLEMENTED",
  UNKNOWN: "INTERNAL",
};
