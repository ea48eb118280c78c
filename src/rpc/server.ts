/**
 * A gRPC server on a unix socket.
 *
 * - The socket appears under its name with mode 0600, or not at all, and is never taken from who answers on it (sys/unix-socket.ts).
 * - Cancellation and deadline of a call reach its handler as one AbortSignal. A call has ended when its handler has.
 * - `close` lets running calls end, then cancels those that take longer than the grace time, and settles when all have ended.
 *
 * Connections come through a `net.Server` of our own: grpc-js binds a path with the process's umask and never says who has it.
 */
import { createServer, type Server as NetServer, type Socket } from "node:net";
import {
  type handleServerStreamingCall,
  type handleUnaryCall,
  type Metadata,
  Server,
  ServerCredentials,
  type ServerWritableStream,
  type ServiceDefinition,
  type UntypedServiceImplementation,
} from "@grpc/grpc-js";
import { ShaleError } from "../errors/index.ts";
import { bindUnixSocket, type UnixSocket } from "../sys/index.ts";
import type { AnyMethod, Method } from "./proto.ts";
import { STATUS, type Status, statusOf } from "./status.ts";

/** Both ways; containerd's side has the same limit. */
export const MESSAGE_LIMIT = 16 * 1024 * 1024;
/** Calls under way on one connection; containerd has one connection for all of its calls. */
const STREAM_LIMIT = 1000;
/** After the last call has ended, for its answer to be read. */
const FLUSH_MS = 1000;

export interface Call {
  readonly method: AnyMethod;
  /** Aborted when the client cancels or goes away, the deadline passes, or the server stops. */
  readonly signal: AbortSignal;
  /** The first value of a request header, in lower case. */
  header(name: string): string | undefined;
  /** Adds to what the observer is told of this call: a key, an image, a digest. No secrets. */
  note(fields: Readonly<Record<string, string | number | undefined>>): void;
}

/** What a call was, once it has ended. */
export interface CallRecord {
  readonly method: AnyMethod;
  readonly status: Status;
  readonly durationMs: number;
  readonly fields: Readonly<Record<string, string | number | undefined>>;
  /** What the handler threw. */
  readonly error: unknown;
}

type UnaryHandler<Request, Response> = (request: Request, call: Call) => Promise<Partial<Response>> | Partial<Response>;
type StreamHandler<Request, Response> = (request: Request, call: Call) => AsyncIterable<Partial<Response>>;

/** The handler of each method of a table made by `loadService`; those that stream only responses give an iterable. */
export type Handlers<M> = {
  readonly [K in keyof M]: M[K] extends Method<infer Request, infer Response, infer Stream>
    ? Stream extends "response"
      ? StreamHandler<Request, Response>
      : UnaryHandler<Request, Response>
    : never;
};

export interface RpcServerOptions {
  readonly observe?: (record: CallRecord) => void;
}

/** What calls of both kinds have. */
interface ServerSurface {
  readonly metadata: Metadata;
  getDeadline(): Date | number;
  once(event: "cancelled", listener: () => void): unknown;
}

type Settle = (error: unknown) => Status;

export class RpcServer {
  readonly #grpc = new Server({
    "grpc.max_receive_message_length": MESSAGE_LIMIT,
    "grpc.max_send_message_length": MESSAGE_LIMIT,
    "grpc.max_concurrent_streams": STREAM_LIMIT,
    "grpc.enable_channelz": 0, // counts of every call and socket, kept in memory for a service that is not served
  });
  readonly #observe: (record: CallRecord) => void;
  readonly #stopping = new AbortController();
  readonly #running = new Set<Promise<void>>();
  readonly #sockets = new Set<Socket>();
  #listening: { readonly server: NetServer; readonly socket: UnixSocket } | undefined;

  constructor(options: RpcServerOptions = {}) {
    this.#observe = options.observe ?? (() => undefined);
  }

  /** Calls whose handlers run. */
  get running(): number {
    return this.#running.size;
  }

  add<M extends Readonly<Record<string, AnyMethod>>>(methods: M, handlers: Handlers<M>): void {
    const definition: Record<string, ServiceDefinition[string]> = {};
    const implementation: UntypedServiceImplementation = {};
    for (const [name, method] of Object.entries(methods)) {
      definition[name] = {
        path: method.path,
        requestStream: method.stream === "both",
        responseStream: method.stream !== "none",
        requestSerialize: (value) => method.encodeRequest(value),
        requestDeserialize: (bytes) => method.decodeRequest(bytes),
        responseSerialize: (value) => method.encodeResponse(value),
        responseDeserialize: (bytes) => method.decodeResponse(bytes),
      };
      // The pairing of names is what Handlers<M> says.
      const handler: unknown = handlers[name];
      implementation[name] =
        method.stream === "none"
          ? this.#unary(method, handler as UnaryHandler<unknown, unknown>)
          : this.#streaming(method, handler as StreamHandler<unknown, unknown>);
    }
    this.#grpc.addService(definition, implementation);
  }

  /** Opens the socket; fails as {@link bindUnixSocket}. */
  async listen(path: string): Promise<void> {
    const injector = this.#grpc.createConnectionInjector(ServerCredentials.createInsecure());
    const server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
      injector.injectConnection(socket);
    });
    this.#listening = { server, socket: await bindUnixSocket(server, path) };
  }

  /** Nothing new is accepted; resolves when every call has ended. Calls that outlast `graceMs` are cancelled. Idempotent. */
  async close(graceMs: number): Promise<void> {
    const listening = this.#listening;
    this.#listening = undefined;
    if (listening !== undefined) {
      listening.socket.release();
      listening.server.close();
    }
    // Sessions say that they are going away and end with their last call. The callback says nothing: Node closes the sessions of an
    // HTTP/2 server by itself, and grpc-js takes those for ended.
    this.#grpc.tryShutdown(() => undefined);
    const timer = setTimeout(() => this.#cancelAll(), graceMs);
    while (this.#running.size > 0) await Promise.all(this.#running);
    clearTimeout(timer);
    // Answers may still be in the sockets' buffers; a client that reads nothing must not hold the end up.
    const forced = setTimeout(() => {
      for (const socket of this.#sockets) socket.destroy();
    }, FLUSH_MS);
    await Promise.all([...this.#sockets].map((socket) => new Promise((done) => socket.once("close", done))));
    clearTimeout(forced);
    this.#grpc.forceShutdown();
  }

  #cancelAll(): void {
    this.#stopping.abort(new ShaleError("UNAVAILABLE", "Stopped: the daemon is shutting down"));
  }

  #unary(method: AnyMethod, handler: UnaryHandler<unknown, unknown>): handleUnaryCall<unknown, unknown> {
    return (grpc, callback) => {
      this.#run(method, grpc, async (call, settle) => {
        try {
          const response = await handler(grpc.request, call);
          settle(undefined);
          callback(null, response);
        } catch (error) {
          const { code, details } = settle(error);
          callback({ code, details });
        }
      });
    };
  }

  #streaming(method: AnyMethod, handler: StreamHandler<unknown, unknown>): handleServerStreamingCall<unknown, unknown> {
    return (grpc) => {
      this.#run(method, grpc, async (call, settle) => {
        try {
          for await (const response of handler(grpc.request, call)) {
            if (call.signal.aborted) break;
            if (!grpc.write(response)) await writable(grpc, call.signal);
          }
          settle(call.signal.aborted ? call.signal.reason : undefined);
          grpc.end();
        } catch (error) {
          const { code, details } = settle(error);
          grpc.emit("error", Object.assign(new Error(details), { code, details }));
        }
      });
    };
  }

  #run(method: AnyMethod, grpc: ServerSurface, body: (call: Call, settle: Settle) => Promise<void>): void {
    const started = performance.now();
    const controller = new AbortController();
    const signal = AbortSignal.any([controller.signal, this.#stopping.signal]);
    const fields: Record<string, string | number | undefined> = {};
    grpc.once("cancelled", () =>
      controller.abort(new ShaleError("CANCELLED", "Stopped: the client has cancelled the call")),
    );
    const call: Call = {
      method,
      signal,
      header: (name) => grpc.metadata.get(name)[0]?.toString(),
      note: (more) => void Object.assign(fields, more),
    };
    const settle: Settle = (error) => {
      const status = error === undefined ? OK : statusOf(error, { deadlinePassed: hasPassed(grpc.getDeadline()) });
      this.#observe({ method, status, durationMs: performance.now() - started, fields, error });
      return status;
    };
    const running = body(call, settle).finally(() => this.#running.delete(running));
    this.#running.add(running);
  }
}

const OK: Status = { name: "OK", code: STATUS.OK, details: "" };

/**
 * A client counts from before its request was on its way, so at its deadline it cancels a little before that has passed here; and a timer
 * may fire a millisecond before the wall clock says so.
 */
const DEADLINE_SLACK_MS = 100;

function hasPassed(deadline: Date | number): boolean {
  return Number(deadline) - DEADLINE_SLACK_MS <= Date.now();
}

/** Resolves when the client has read enough to write again, or will not any more. */
function writable(grpc: ServerWritableStream<unknown, unknown>, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      grpc.off("drain", done);
      signal.removeEventListener("abort", done);
      resolve();
    };
    grpc.once("drain", done);
    signal.addEventListener("abort", done, { once: true });
    if (signal.aborted) done();
  });
}
