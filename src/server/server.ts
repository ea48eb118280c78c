/**
 * The life cycle of a registry: listening, timeouts, draining, abandoning.
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { cancelled, throwIfAborted } from "../async/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { handle } from "./handler.ts";
import type { ContentProvider } from "./provider.ts";

/** One finished request. */
export interface AccessRecord {
  readonly method: string;
  /** As the client sent it: escape it before it goes to a terminal. */
  readonly target: string;
  readonly status: number;
  /** False when the client went away, or the provider failed, before the whole answer was sent. */
  readonly complete: boolean;
  readonly durationMs: number;
  readonly client: string;
  /** What the provider threw; the client was told nothing of it but the status. */
  readonly error?: unknown;
}

export interface RegistryOptions {
  /** Address to listen on; 127.0.0.1 by default, so that nothing is served to other machines unasked. */
  readonly host?: string;
  /** 0, the default, lets the system choose. */
  readonly port?: number;
  readonly log?: (record: AccessRecord) => void;
  /** Abandons the server: connections are cut. */
  readonly signal?: AbortSignal;
  /** A connection on which no byte moved for so long is cut; 60 s by default. */
  readonly idleTimeoutMs?: number;
  /** Request line and headers have to arrive within this; 10 s by default (Node's default is 60 s). */
  readonly headersTimeoutMs?: number;
  /** Connections beyond this are closed at once; 1024 by default (Node has no limit). */
  readonly maxConnections?: number;
}

export interface Registry extends AsyncDisposable {
  /** `http://host:port`, without a slash at the end. */
  readonly url: string;
  readonly host: string;
  readonly port: number;
  /** Accepts nothing new, lets running answers end, and resolves when the last connection is closed. Idempotent. */
  close(): Promise<void>;
}

/** Bytes of request line and headers; Node's own default, stated because it is a limit of docs/limits.md. */
const MAX_HEADER_SIZE = 16 * 1024;
/** Node's default is 2000. Clients send about ten. */
const MAX_HEADERS = 100;
/** A kept connection without a request; longer than the 4 s after which undici gives one up. */
const KEEP_ALIVE_MS = 15_000;

/**
 * Starts serving. Resolves when the port is open. Rejects with FAILED_PRECONDITION when the address is in use,
 * PERMISSION_DENIED when the port is not ours to open, INVALID_ARGUMENT when this machine has no such address.
 */
export async function startRegistry(provider: ContentProvider, options: RegistryOptions = {}): Promise<Registry> {
  const { host = "127.0.0.1", port = 0, log, signal, idleTimeoutMs = 60_000, headersTimeoutMs = 10_000 } = options;
  throwIfAborted(signal);
  const running = new Set<Promise<void>>();
  let closing = false;

  const server = createServer(
    {
      maxHeaderSize: MAX_HEADER_SIZE,
      headersTimeout: headersTimeoutMs,
      // Requests have no body: what may take long is the answer, and that is the idle timeout's business.
      requestTimeout: headersTimeoutMs,
      connectionsCheckingInterval: Math.min(headersTimeoutMs, 5_000),
      keepAliveTimeout: KEEP_ALIVE_MS,
      noDelay: true,
    },
    (request, response) => {
      const one = serveOne(provider, request, response, closing, log).finally(() => {
        running.delete(one);
        if (closing) server.closeIdleConnections();
      });
      running.add(one);
    },
  );
  server.maxHeadersCount = MAX_HEADERS;
  server.maxConnections = options.maxConnections ?? 1024;
  server.setTimeout(idleTimeoutMs, (socket) => socket.destroy());
  await listen(server, host, port);

  const closed = new Promise<void>((resolve) => server.once("close", () => resolve()));
  const stop = async (): Promise<void> => {
    if (!closing) {
      closing = true;
      signal?.removeEventListener("abort", abandon);
      server.close(); // also closes the connections that are idle
    }
    await closed;
    await Promise.all(running);
  };
  const abandon = () => {
    void stop();
    server.closeAllConnections();
  };
  signal?.addEventListener("abort", abandon, { once: true });
  if (signal?.aborted) {
    abandon();
    await stop();
    throw cancelled(signal);
  }

  const address = server.address() as AddressInfo;
  const shownHost = address.family === "IPv6" ? `[${address.address}]` : address.address;
  return {
    url: `http://${shownHost}:${address.port}`,
    host: address.address,
    port: address.port,
    close: stop,
    async [Symbol.asyncDispose]() {
      abandon();
      await stop();
    },
  };
}

async function serveOne(
  provider: ContentProvider,
  request: IncomingMessage,
  response: ServerResponse,
  closing: boolean,
  log: ((record: AccessRecord) => void) | undefined,
): Promise<void> {
  const started = performance.now();
  const gone = new AbortController();
  const finished = new Promise<void>((resolve) => {
    response.once("close", () => {
      if (!response.writableFinished) gone.abort();
      resolve();
    });
  });
  // A response is an emitter: a reset connection must not become an uncaught exception.
  response.on("error", () => gone.abort());
  if (closing) response.setHeader("connection", "close");
  const { error } = await handle(provider, request, response, gone.signal);
  await finished;
  log?.({
    method: request.method ?? "",
    target: request.url ?? "",
    status: response.statusCode,
    complete: response.writableFinished,
    durationMs: performance.now() - started,
    client: request.socket.remoteAddress ?? "",
    ...(error === undefined ? {} : { error }),
  });
}

function listen(server: ReturnType<typeof createServer>, host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (error: Error) => {
      const errno = errnoOf(error);
      const place = `${host}:${port}`;
      if (errno === "EADDRINUSE") {
        reject(
          new ShaleError("FAILED_PRECONDITION", `Cannot listen on ${place}: the port is in use`, { cause: error }),
        );
      } else if (errno === "EACCES" || errno === "EPERM") {
        reject(new ShaleError("PERMISSION_DENIED", `Cannot listen on ${place}: not permitted`, { cause: error }));
      } else if (errno === "EADDRNOTAVAIL" || errno === "ENOTFOUND" || errno === "EAI_AGAIN") {
        reject(
          new ShaleError("INVALID_ARGUMENT", `Cannot listen on ${place}: this machine has no such address`, {
            cause: error,
          }),
        );
      } else reject(error);
    };
    server.once("error", fail);
    server.listen({ host, port }, () => {
      server.off("error", fail);
      resolve();
    });
  });
}
