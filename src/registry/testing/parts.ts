/** Steps for the scripted server that answer requests for several ranges, rightly and in the wrong ways that are met. */
import type { IncomingMessage, ServerResponse } from "node:http";
import { ok, ranges, type Step } from "./scripted-server.ts";

export type AskedRange = readonly [first: number, last: number];

export interface PartsOptions {
  /** What becomes of the ranges asked for: another order, joined, fewer. */
  readonly change?: (asked: readonly AskedRange[]) => readonly AskedRange[];
  /** As the Content-Type has it; quoted or not is up to the server. */
  readonly boundary?: string;
  /** Bytes of the body after which the connection is reset. */
  readonly breakAfter?: number;
  /** What is sent for a part, in place of its bytes. */
  readonly bytesOf?: (first: number, last: number) => Uint8Array;
}

/** The ranges of "Range: bytes=1-2,5-6"; undefined when there is no such header. */
export function askedRanges(request: IncomingMessage): readonly AskedRange[] | undefined {
  const match = /^bytes=([\d,-]+)$/.exec(request.headers.range ?? "");
  if (match === null) return undefined;
  return match[1]!.split(",").map((one) => one.split("-").map(Number) as [number, number]);
}

/** A server of several ranges: 206 multipart/byteranges where more than one is asked for. */
export function parts(content: Uint8Array, options: PartsOptions = {}): Step {
  return (request, response) => {
    const asked = askedRanges(request);
    if (asked === undefined) return ok(content)(request, response);
    const changed = options.change?.(asked) ?? asked;
    if (asked.length === 1) return ranges(content)(request, response);
    sendParts(content, changed, response, options);
  };
}

function sendParts(
  content: Uint8Array,
  list: readonly AskedRange[],
  response: ServerResponse,
  { boundary = "3d6b6a416f9b5", breakAfter, bytesOf }: PartsOptions,
): void {
  const name = boundary.replaceAll('"', "");
  const body: Uint8Array[] = [];
  for (const [first, last] of list) {
    const head = `\r\n--${name}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes ${first}-${last}/${content.length}\r\n\r\n`;
    body.push(Buffer.from(head), bytesOf?.(first, last) ?? content.subarray(first, last + 1));
  }
  body.push(Buffer.from(`\r\n--${name}--\r\n`));
  const bytes = Buffer.concat(body);
  response.writeHead(206, {
    "content-type": `multipart/byteranges; boundary=${boundary}`,
    "content-length": bytes.length,
  });
  if (breakAfter === undefined) response.end(bytes);
  else response.write(bytes.subarray(0, breakAfter), () => response.socket?.resetAndDestroy());
}

/** `many` for requests with more than one range, else `one`. */
export function byCount(one: Step, many: Step): Step {
  return (request, response) => ((askedRanges(request)?.length ?? 0) > 1 ? many : one)(request, response);
}
