/**
 * /metrics, /healthz and /readyz over HTTP, on an address that the operator chose. Read-only, without authentication.
 */
import { createServer, type Server } from "node:http";
import { errnoOf, ShaleError } from "../../errors/index.ts";
import { bindUnixSocket } from "../../sys/index.ts";
import { parseHostPort } from "../config/index.ts";

export interface Probes {
  readonly metrics: () => string;
  /** It takes calls. */
  readonly ready: () => boolean;
}

const CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8";
/** Scrapers are few; what hangs on must not take the daemon's descriptors. */
const MAX_CONNECTIONS = 64;
const TIMEOUT_MS = 10_000;

export interface ProbeServer {
  /** "127.0.0.1:9190", with the port that the system chose for 0; or the socket's path. */
  readonly address: string;
  close(): Promise<void>;
}

/** `address` is "HOST:PORT" or a socket's path (0600). FAILED_PRECONDITION when it is in use. */
export async function serveProbes(address: string, probes: Probes): Promise<ProbeServer> {
  const server = createServer({ headersTimeout: TIMEOUT_MS, requestTimeout: TIMEOUT_MS }, (request, response) => {
    const path = request.url?.split("?")[0];
    const answer = request.method === "GET" || request.method === "HEAD" ? answerOf(path, probes) : METHOD_NOT_ALLOWED;
    response.writeHead(answer.status, { "content-type": answer.type ?? "text/plain; charset=utf-8" });
    response.end(request.method === "HEAD" ? undefined : answer.text);
  });
  server.maxConnections = MAX_CONNECTIONS;
  const socket = await listen(server, address);
  const bound = server.address();
  const shown = typeof bound === "object" && bound !== null ? `${hostOf(bound.address)}:${bound.port}` : address;
  return {
    address: shown,
    close: () =>
      new Promise((resolve) => {
        socket?.release();
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

interface Answer {
  readonly status: number;
  readonly text: string;
  readonly type?: string;
}

const METHOD_NOT_ALLOWED: Answer = { status: 405, text: "only GET\n" };

function answerOf(path: string | undefined, { metrics, ready }: Probes): Answer {
  switch (path) {
    case "/metrics":
      return { status: 200, text: metrics(), type: CONTENT_TYPE };
    case "/healthz": // the process answers at all
      return { status: 200, text: "ok\n" };
    case "/readyz":
      return ready() ? { status: 200, text: "ok\n" } : { status: 503, text: "not ready\n" };
    default:
      return { status: 404, text: "there are /metrics, /healthz and /readyz\n" };
  }
}

function hostOf(address: string): string {
  return address.includes(":") ? `[${address}]` : address;
}

async function listen(server: Server, address: string): Promise<{ release(): void } | undefined> {
  if (address.startsWith("/")) return await bindUnixSocket(server, address);
  const place = parseHostPort(address);
  if (place === undefined) throw new RangeError(`no address: ${address}`);
  try {
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(place, () => resolve());
    });
    return undefined;
  } catch (error) {
    const errno = errnoOf(error) ?? "";
    const act = `Cannot serve metrics on ${address}`;
    if (errno === "EADDRINUSE") throw new ShaleError("FAILED_PRECONDITION", `${act}: it is in use`, { cause: error });
    if (errno === "EACCES" || errno === "EPERM") {
      throw new ShaleError("PERMISSION_DENIED", `${act}: this user may not`, { cause: error });
    }
    if (["EADDRNOTAVAIL", "ENOTFOUND", "EAI_AGAIN"].includes(errno)) {
      throw new ShaleError("INVALID_ARGUMENT", `${act}: this machine has no such address`, { cause: error });
    }
    throw error;
  }
}
