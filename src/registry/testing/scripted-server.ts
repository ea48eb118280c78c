/**
 * A registry that misbehaves as told, on a loopback port. Each path has a list of steps; a request takes the first one,
 * and the last one stays. Every request is recorded. For tests of everything that fetches.
 */
import { createHash } from "node:crypto";
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo, Socket } from "node:net";

export interface RecordedRequest {
  readonly method: string;
  /** Path and query. */
  readonly url: string;
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

export type Step = (request: IncomingMessage, response: ServerResponse) => void;

export interface ScriptedServer extends AsyncDisposable {
  /** "127.0.0.1:PORT", as in a reference. */
  readonly host: string;
  /** "http://127.0.0.1:PORT". */
  readonly origin: string;
  readonly requests: readonly RecordedRequest[];
  /** Sets the steps of "METHOD /path" (the query does not count). */
  on(route: string, ...steps: readonly Step[]): void;
  /** Puts a blob; returns its descriptor. `steps` replace the correct answer. */
  blob(repository: string, content: Uint8Array, mediaType?: string, ...steps: readonly Step[]): Stored;
  /** Puts a manifest under its digest and under `tag`; `steps` replace the correct answer for the tag. */
  manifest(repository: string, tag: string, document: object, ...steps: readonly Step[]): Stored;
  /** Requests for a path. */
  requestsTo(path: string): readonly RecordedRequest[];
}

export interface Stored {
  readonly mediaType: string;
  readonly digest: string;
  readonly size: number;
  readonly bytes: Uint8Array;
}

export interface ServerTls {
  readonly key: string;
  readonly cert: string;
}

/** Listens at once. Dispose ends connections that are still open (stalled ones too). */
export async function startScriptedServer(tls?: ServerTls): Promise<ScriptedServer> {
  const routes = new Map<string, Step[]>();
  const requests: RecordedRequest[] = [];
  const sockets = new Set<Socket>();
  const handle = (request: IncomingMessage, response: ServerResponse) => {
    let body = "";
    request.setEncoding("utf8");
    request.on("data", (text: string) => {
      body += text;
    });
    request.on("end", () => {
      const url = request.url ?? "";
      requests.push({ method: request.method ?? "", url, headers: request.headers, body });
      const steps = routes.get(`${request.method} ${url.split("?", 1)[0]}`);
      const step = steps === undefined ? status(404) : steps.length > 1 ? steps.shift()! : steps[0]!;
      step(request, response);
    });
  };
  const server = tls === undefined ? createServer(handle) : createTlsServer(tls, handle);
  server.on("connection", (socket: Socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => {}); // a client that leaves early is one of the cases
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const host = `127.0.0.1:${(server.address() as AddressInfo).port}`;

  const on = (route: string, ...steps: readonly Step[]) => void routes.set(route, [...steps]);
  const store = (content: Uint8Array, mediaType: string): Stored => ({
    mediaType,
    digest: `sha256:${createHash("sha256").update(content).digest("hex")}`,
    size: content.length,
    bytes: content,
  });
  return {
    host,
    origin: `${tls === undefined ? "http" : "https"}://${host}`,
    requests,
    on,
    blob(repository, content, mediaType = "application/vnd.oci.image.layer.v1.tar", ...steps) {
      const stored = store(content, mediaType);
      on(`GET /v2/${repository}/blobs/${stored.digest}`, ...(steps.length > 0 ? steps : [ranges(content)]));
      return stored;
    },
    manifest(repository, tag, document, ...steps) {
      const { mediaType } = document as { readonly mediaType?: string };
      const stored = store(Buffer.from(JSON.stringify(document)), mediaType ?? "application/json");
      const answer = ok(stored.bytes, { "content-type": stored.mediaType, "docker-content-digest": stored.digest });
      on(`GET /v2/${repository}/manifests/${tag}`, ...(steps.length > 0 ? steps : [answer]));
      on(`GET /v2/${repository}/manifests/${stored.digest}`, answer);
      return stored;
    },
    requestsTo: (path) => requests.filter((one) => one.url.split("?", 1)[0] === path),
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

export type Headers = Readonly<Record<string, string | readonly string[]>>;

export function status(code: number, headers: Headers = {}, body: string | Uint8Array = ""): Step {
  return (_request, response) => {
    response.writeHead(code, headers as Record<string, string | string[]>);
    response.end(body);
  };
}

/** 200 with the whole content, whatever was asked for. */
export function ok(content: Uint8Array, headers: Headers = {}): Step {
  return status(200, { "content-length": String(content.length), ...headers }, content);
}

/** A correct server of ranges. */
export function ranges(content: Uint8Array, headers: Headers = {}): Step {
  return (request, response) => {
    const asked = askedRange(request, content.length);
    if (asked === undefined) return ok(content, headers)(request, response);
    const [first, last] = asked;
    part(content, first, last, headers)(request, response);
  };
}

/** 206 with bytes `first` to `last` (inclusive), whatever was asked for. */
export function part(content: Uint8Array, first: number, last: number, headers: Headers = {}): Step {
  const body = content.subarray(first, last + 1);
  return status(
    206,
    { "content-length": String(body.length), "content-range": `bytes ${first}-${last}/${content.length}`, ...headers },
    body,
  );
}

/** Like `ranges`, but the connection is reset after `count` bytes of the body. */
export function breakAfter(content: Uint8Array, count: number): Step {
  return (request, response) => {
    const [first, last] = askedRange(request, content.length) ?? [0, content.length - 1];
    begin(request, response, content.length, first, last);
    response.write(content.subarray(first, Math.min(first + count, last + 1)), () => {
      request.socket.resetAndDestroy();
    });
  };
}

/** Like `ranges`, but nothing comes after `count` bytes; the connection stays open. */
export function stallAfter(content: Uint8Array, count: number): Step {
  return (request, response) => {
    const [first, last] = askedRange(request, content.length) ?? [0, content.length - 1];
    begin(request, response, content.length, first, last);
    response.write(content.subarray(first, first + count));
  };
}

/** No answer at all. */
export function silence(): Step {
  return () => {};
}

export function redirect(location: string, code = 307): Step {
  return status(code, { location });
}

/** `step` for requests whose Authorization is one of `accepted`, else 401 with `challenge`. */
export function guarded(accepted: readonly string[], challenge: string | readonly string[], step: Step): Step {
  return (request, response) => {
    if (accepted.includes(request.headers.authorization ?? "")) return step(request, response);
    status(401, { "www-authenticate": challenge })(request, response);
  };
}

/** The inclusive range of "Range: bytes=A-B" or "bytes=A-". */
function askedRange(request: IncomingMessage, size: number): readonly [number, number] | undefined {
  const match = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? "");
  if (match === null) return undefined;
  return [Number(match[1]), match[2] === "" ? size - 1 : Math.min(size - 1, Number(match[2]))];
}

function begin(request: IncomingMessage, response: ServerResponse, size: number, first: number, last: number): void {
  if (request.headers.range === undefined) response.writeHead(200, { "content-length": size });
  else
    response.writeHead(206, { "content-length": last - first + 1, "content-range": `bytes ${first}-${last}/${size}` });
  response.flushHeaders();
}
