/**
 * A TCP proxy on loopback that has the rate and the latency of a line: what comes from the server passes one queue of that
 * rate, whichever connection it belongs to; half of the latency is added in each direction. Windows and losses of TCP are
 * not simulated. Counts what came from the server.
 */
import { connect, createServer, type Socket } from "node:net";
import { ShaleError } from "../src/errors/index.ts";

export interface Line {
  readonly name: string;
  /** Bytes a second; Infinity for no limit. */
  readonly rate: number;
  /** Round trip. */
  readonly latencyMs: number;
}

export interface ThrottledProxy extends AsyncDisposable {
  /** "127.0.0.1:PORT". */
  readonly address: string;
  readonly receivedBytes: number;
}

/** Bytes of one connection that wait in the proxy, at least; more where the line holds more. */
const QUEUE_MIN = 256 * 1024;

export async function startThrottledProxy(target: string, { rate, latencyMs }: Line): Promise<ThrottledProxy> {
  const [host, port] = target.split(":");
  const sockets = new Set<Socket>();
  let receivedBytes = 0;
  /** When the line has sent what it was given, in ms of performance.now(). */
  let freeAtMs = 0;
  const queueLimit = Number.isFinite(rate) ? QUEUE_MIN + (rate * latencyMs) / 1000 : QUEUE_MIN + 64 * QUEUE_MIN;
  const throttled = (length: number): number => {
    receivedBytes += length;
    freeAtMs = Math.max(freeAtMs, performance.now()) + (length / rate) * 1000;
    return freeAtMs;
  };
  const server = createServer((client) => {
    const upstream = connect(Number(port), host);
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.setNoDelay(true);
      socket.on("close", () => sockets.delete(socket));
      socket.on("error", () => {
        client.destroy();
        upstream.destroy();
      });
    }
    forward(client, upstream, () => performance.now(), latencyMs / 2, queueLimit);
    forward(upstream, client, throttled, latencyMs / 2, queueLimit);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (typeof address !== "object" || address === null) {
    throw new ShaleError("INTERNAL", "Cannot start the proxy: it has no address");
  }
  return {
    address: `127.0.0.1:${address.port}`,
    get receivedBytes() {
      return receivedBytes;
    },
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of sockets) socket.destroy();
      await closed;
    },
  };
}

/** Moves bytes from one socket to the other, each piece `delayMs` after the time that `sentAt` gives for it. */
function forward(from: Socket, to: Socket, sentAt: (length: number) => number, delayMs: number, limit: number): void {
  const queue: { readonly dueMs: number; readonly bytes: Buffer }[] = [];
  let queued = 0;
  let waiting = false;
  let ended = false;
  const wait = (): void => {
    if (waiting) return;
    waiting = true;
    setTimeout(release, Math.max(0, queue[0]!.dueMs - performance.now()));
  };
  const release = (): void => {
    waiting = false;
    const now = performance.now();
    while (queue.length > 0 && queue[0]!.dueMs <= now + 0.5) {
      const { bytes } = queue.shift()!;
      queued -= bytes.length;
      if (!to.destroyed) to.write(bytes);
    }
    if (queued < limit / 2 && from.isPaused()) from.resume();
    if (queue.length > 0) wait();
    else if (ended) to.end();
  };
  from.on("data", (bytes: Buffer) => {
    queue.push({ dueMs: sentAt(bytes.length) + delayMs, bytes });
    queued += bytes.length;
    if (queued > limit) from.pause();
    wait();
  });
  from.on("end", () => {
    ended = true;
    if (queue.length === 0) to.end();
  });
}
