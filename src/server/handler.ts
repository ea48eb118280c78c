/**
 * One request, one answer: from a provider's content to HTTP. A body is never padded, cut or ended early: when the
 * provider fails after the header was sent, the connection is destroyed, so that the client sees a broken transfer.
 */
import { randomBytes } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { ShaleError } from "../errors/index.ts";
import { publicError, RegistryError } from "./errors.ts";
import { accepts, entityTag, matchesNone, rangeApplies } from "./negotiation.ts";
import type { ContentProvider, ServedBlob } from "./provider.ts";
import { type ByteRange, chooseRanges, formatContentRange } from "./ranges.ts";
import { paginate, parseRoute, type Route } from "./routes.ts";

/** What became of a request; `error` is for the log, never for the client. */
export interface Outcome {
  readonly error?: unknown;
}

/**
 * Answers one request and resolves when the answer was handed to the socket or the connection is gone. Never rejects
 * because of the client or the provider. `signal` is aborted when the connection closes.
 */
export async function handle(
  provider: ContentProvider,
  request: IncomingMessage,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<Outcome> {
  try {
    if (request.method !== "GET" && request.method !== "HEAD") {
      // The body, if any, is not read: closing is cheaper than swallowing an upload.
      throw new RegistryError("UNSUPPORTED", "this registry is read-only", {
        headers: { allow: "GET, HEAD", connection: "close" },
      });
    }
    const hasBody = request.headers["transfer-encoding"] !== undefined || Number(request.headers["content-length"]) > 0;
    if (hasBody) {
      const headers = { connection: "close" };
      throw new RegistryError("UNSUPPORTED", "a read request has no body", { status: 400, headers });
    }
    await answer(provider, parseRoute(request.url ?? ""), request, response, signal);
    return {};
  } catch (error) {
    if (response.destroyed || signal.aborted) return { error };
    if (response.headersSent) {
      response.destroy();
      return { error };
    }
    const shown = publicError(error);
    const body = shown.body();
    for (const name of response.getHeaderNames()) response.removeHeader(name);
    response.writeHead(shown.status, {
      ...shown.headers,
      "content-type": "application/json",
      "content-length": body.byteLength,
    });
    response.end(request.method === "HEAD" ? undefined : body);
    return error === shown ? {} : { error };
  }
}

async function answer(
  provider: ContentProvider,
  route: Route,
  request: IncomingMessage,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  response.setHeader("docker-distribution-api-version", "registry/2.0");
  switch (route.kind) {
    case "version":
      return sendJson(request, response, {});
    case "catalog": {
      const page = paginate(await provider.listRepositories(), route.query, "/v2/_catalog");
      if (page.link !== undefined) response.setHeader("link", page.link);
      return sendJson(request, response, { repositories: page.names });
    }
    case "tags": {
      const tags = await provider.listTags(route.repository);
      if (tags === undefined) throw new RegistryError("NAME_UNKNOWN", `no repository ${route.repository}`);
      const page = paginate(tags, route.query, `/v2/${route.repository}/tags/list`);
      if (page.link !== undefined) response.setHeader("link", page.link);
      return sendJson(request, response, { name: route.repository, tags: page.names });
    }
    case "manifest":
      return sendManifest(provider, route.repository, route.reference, request, response, signal);
    case "blob": {
      const blob = await provider.openBlob(route.repository, route.digest, { signal });
      if (blob === undefined) throw new RegistryError("BLOB_UNKNOWN", `no blob ${route.digest} in ${route.repository}`);
      try {
        return await sendBlob(blob, route.digest, request, response, signal);
      } finally {
        await blob.close?.();
      }
    }
  }
}

function sendJson(request: IncomingMessage, response: ServerResponse, value: unknown): void {
  const body = Buffer.from(`${JSON.stringify(value)}\n`);
  response.writeHead(200, { "content-type": "application/json", "content-length": body.byteLength });
  response.end(request.method === "HEAD" ? undefined : body);
}

async function sendManifest(
  provider: ContentProvider,
  repository: string,
  reference: string,
  request: IncomingMessage,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  const found = await provider.resolve(repository, reference, { signal });
  if (found === undefined) throw new RegistryError("MANIFEST_UNKNOWN", `no manifest ${reference} in ${repository}`);
  const { descriptor, bytes } = found;
  // 404 rather than 406, as distribution/distribution answers: clients try their next media type or mirror then.
  if (!accepts(request.headers.accept, descriptor.mediaType)) {
    const problem = `manifest ${reference} is ${descriptor.mediaType}, which the Accept header does not allow`;
    throw new RegistryError("MANIFEST_UNKNOWN", problem);
  }
  const tag = entityTag(descriptor.digest);
  response.setHeader("docker-content-digest", descriptor.digest);
  response.setHeader("etag", tag);
  response.setHeader("vary", "accept");
  if (matchesNone(request.headers["if-none-match"], tag)) {
    response.writeHead(304).end();
    return;
  }
  response.writeHead(200, { "content-type": descriptor.mediaType, "content-length": bytes.byteLength });
  response.end(request.method === "HEAD" ? undefined : bytes);
}

async function sendBlob(
  blob: ServedBlob,
  digest: string,
  request: IncomingMessage,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  const tag = entityTag(digest);
  const mediaType = blob.mediaType ?? "application/octet-stream";
  response.setHeader("docker-content-digest", digest);
  response.setHeader("etag", tag);
  response.setHeader("accept-ranges", "bytes");
  // What a digest names never changes.
  response.setHeader("cache-control", "max-age=31536000, immutable");
  if (matchesNone(request.headers["if-none-match"], tag)) {
    response.writeHead(304).end();
    return;
  }
  // RFC 9110 14.2: Range is defined for GET only.
  const applies = request.method === "GET" && rangeApplies(header(request, "if-range"), tag);
  const choice = chooseRanges(applies ? request.headers.range : undefined, blob.size);
  if (choice.kind === "unsatisfiable") {
    throw new RegistryError("UNSUPPORTED", choice.problem, {
      status: 416,
      headers: { "content-range": `bytes */${blob.size}`, "accept-ranges": "bytes" },
    });
  }
  if (choice.kind === "ranges" && choice.ranges.length > 1) {
    return sendParts(blob, choice.ranges, mediaType, response, signal);
  }
  const range = choice.kind === "ranges" ? choice.ranges[0]! : { start: 0, end: blob.size };
  if (choice.kind === "ranges") response.setHeader("content-range", formatContentRange(range, blob.size));
  response.writeHead(choice.kind === "ranges" ? 206 : 200, {
    "content-type": mediaType,
    "content-length": range.end - range.start,
  });
  if (request.method === "GET") await sendRange(blob, range, response, signal);
  response.end();
}

/** multipart/byteranges, RFC 9110 14.6: the parts in the order of the request. */
async function sendParts(
  blob: ServedBlob,
  ranges: readonly ByteRange[],
  mediaType: string,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  // Random, so that content can't contain it on purpose.
  const boundary = randomBytes(16).toString("hex");
  const heads = ranges.map((range) => {
    const place = formatContentRange(range, blob.size);
    return `\r\n--${boundary}\r\nContent-Type: ${mediaType}\r\nContent-Range: ${place}\r\n\r\n`;
  });
  const tail = `\r\n--${boundary}--\r\n`;
  const length = ranges.reduce((sum, range, i) => sum + heads[i]!.length + range.end - range.start, tail.length);
  response.writeHead(206, {
    "content-type": `multipart/byteranges; boundary=${boundary}`,
    "content-length": length,
  });
  for (const [i, range] of ranges.entries()) {
    await write(response, Buffer.from(heads[i]!), signal);
    await sendRange(blob, range, response, signal);
  }
  response.end(tail);
}

async function sendRange(
  blob: ServedBlob,
  range: ByteRange,
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  let left = range.end - range.start;
  if (left === 0) return;
  for await (const chunk of blob.read(range.start, range.end, { signal })) {
    left -= chunk.byteLength;
    if (left < 0) break;
    await write(response, chunk, signal);
  }
  if (left !== 0) {
    const state = left < 0 ? "the provider gave more bytes" : `${left} bytes are missing`;
    throw new ShaleError("DATA_LOSS", `Cannot serve bytes ${range.start} to ${range.end} of a blob: ${state}`);
  }
}

/** Resolves when the socket can take more; rejects when the connection is gone. */
function write(response: ServerResponse, chunk: Uint8Array, signal: AbortSignal): Promise<void> | void {
  if (signal.aborted || response.destroyed) throw new ShaleError("CANCELLED", "Stopped: the client has gone");
  if (response.write(chunk)) return;
  return new Promise((resolve, reject) => {
    const done = () => {
      signal.removeEventListener("abort", gone);
      resolve();
    };
    const gone = () => {
      response.off("drain", done);
      reject(new ShaleError("CANCELLED", "Stopped: the client has gone"));
    };
    response.once("drain", done);
    signal.addEventListener("abort", gone, { once: true });
  });
}

function header(request: IncomingMessage, name: string): string | undefined {
  const value = request.headers[name];
  return Array.isArray(value) ? value.join(",") : value;
}
