/**
 * A gRPC server on a unix socket.
 *
 * - The socket appears under its name with mode 0600, or not at all: it is bound under another name and renamed into place. What was
 *   there before is replaced only if nobody answers on it.
 * - Cancellation and deadline of a call reach its handler as one AbortSignal. A call has ended when its handler has.
 * - `close` lets running calls end, then cancels those that take longer than the grace time, and settles when all have ended.
 *
 * Connections come through a `net.Server` of our own: grpc-js binds a path with the process's umask and never says who has it.
 */
import { connect, createServer, type Server as NetServer, type Socket } from "node:net";
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
import { errnoOf, ShaleError } from "../errors/index.ts";
import { findFile, rename, unlink } from "../sys/index.ts";
import type { AnyMethod, Method } from "./proto.ts";
import { STATUS, type Status, statusOf } from "./status.ts";

/** Both ways; containerd's side has the same limit. */
export const MESSAGE_LIMIT = 16 * 1024 * 1024;
/** Calls under way on one connection; containerd has one connection for all of its calls. */
const STREAM_LIMIT = 1000;

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
  #listening: { readonly server: NetServer; readonly path: string; readonly inode: bigint } | undefined;

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

  /**
   * Opens the socket. Its directory must exist. FAILED_PRECONDITION when another process answers there, or something that is no
   * socket has the name.
   */
  async listen(path: string): Promise<void> {
    await refuseLiveSocket(path);
    const injector = this.#grpc.createConnectionInjector(ServerCredentials.createInsecure());
    const server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
      injector.injectConnection(socket);
    });
    const temporary = `${path}.${process.pid}`;
    unlink(temporary); // of a process that died while it bound, and had our pid
    await bind(server, temporary).catch((error: unknown) => {
      throw explainListen(path, error);
    });
    rename(temporary, path);
    this.#listening = { server, path, inode: findFile(path)!.ino };
  }

  /** Nothing new is accepted; resolves when every call has ended. Calls that outlast `graceMs` are cancelled. Idempotent. */
  async close(graceMs: number): Promise<void> {
    const listening = this.#listening;
    this.#listening = undefined;
    if (listening !== undefined) {
      // Ours only: a successor may have renamed its own socket over it.
      if (findFile(listening.path)?.ino === listening.inode) unlink(listening.path);
      listening.server.close();
    }
    const drained = new Promise<void>((resolve) => this.#grpc.tryShutdown(() => resolve()));
    const timer = setTimeout(() => this.#cancelAll(), graceMs);
    await Promise.all(this.#running);
    clearTimeout(timer);
    // The answers are in the sockets' buffers; a client that reads nothing must not hold the end up.
    const forced = setTimeout(() => this.#grpc.forceShutdown(), 500);
    await drained;
    clearTimeout(forced);
    for (const socket of this.#sockets) socket.destroy();
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
          grpc.destroy(Object.assign(new Error(details), { code, details }));
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

function hasPassed(deadline: Date | number): boolean {
  return Number(deadline) <= Date.now();
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

/** A socket that nobody listens on is a leftover, whatever its age: the kernel refuses the connection. */
async function refuseLiveSocket(path: string): Promise<void> {
  const there = findFile(path);
  if (there === undefined) return;
  if (there.kind !== "other") {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot listen on ${path}: a ${there.kind} has that name`, {
      hint: "Choose another --address",
    });
  }
  const alive = await new Promise<boolean>((resolve, reject) => {
    const probe = connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", (error) => {
      const gone = ["ECONNREFUSED", "ENOENT"].includes(errnoOf(error) ?? "");
      if (gone) resolve(false);
      else reject(explainListen(path, error));
    });
  });
  if (alive) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot listen on ${path}: another process serves it`, {
      hint: "Stop that one, or choose another --address and --root",
    });
  }
}

function bind(server: NetServer, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    // bind(2) takes the mode from the umask, and happens before listen() returns: no moment with another mode.
    const before = process.umask(0o177);
    try {
      server.listen({ path }, () => resolve());
    } finally {
      process.umask(before);
    }
  });
}

/** sun_path of unix(7), with room for the temporary name. */
const PATH_LIMIT = 95;

function explainListen(path: string, error: unknown): unknown {
  const errno = errnoOf(error);
  if (Buffer.byteLength(path) > PATH_LIMIT) {
    return new ShaleError(
      "INVALID_ARGUMENT",
      `Cannot listen on ${path}: a socket's path may have ${PATH_LIMIT} bytes`,
      {
        cause: error,
      },
    );
  }
  if (errno === "EACCES" || errno === "EPERM" || errno === "EROFS") {
    return new ShaleError("PERMISSION_DENIED", `Cannot listen on ${path}: this user may not`, { cause: error });
  }
  if (errno === "ENOENT") {
    return new ShaleError("NOT_FOUND", `Cannot listen on ${path}: its directory is missing`, { cause: error });
  }
  return error;
}
