/**
 * A gRPC client over a unix socket, for containerd's own services. One connection, made by the first call and kept.
 *
 * Each call takes a signal and has a deadline: a peer that hangs is UNAVAILABLE, not a hang of ours. Other failures keep their code.
 */
import { Client, type ClientDuplexStream, credentials, Metadata, type ServiceError } from "@grpc/grpc-js";
import { cancelled, throwIfAborted } from "../async/index.ts";
import type { Method } from "./proto.ts";
import { MESSAGE_LIMIT } from "./server.ts";
import { errorOf } from "./status.ts";

const DEADLINE_MS = 30_000;

export interface CallOptions {
  readonly signal?: AbortSignal;
  readonly headers?: Readonly<Record<string, string>>;
  /** The client's unless given; a stream's is for the whole of it. */
  readonly timeoutMs?: number;
}

/** Requests go in one at a time, each answered before the next is sent: how containerd's Write works. */
export interface Exchange<Request, Response> extends Disposable {
  send(request: Partial<Request>): Promise<Response>;
  /** No more requests; resolves when the peer has ended the call, rejects with what it says. */
  end(): Promise<void>;
}

export class RpcClient implements Disposable {
  readonly #client: Client;
  readonly #address: string;
  readonly #timeoutMs: number;

  /** `path` is that of the socket; `timeoutMs` is for each call, 30 s unless given. */
  constructor(path: string, { timeoutMs = DEADLINE_MS }: { readonly timeoutMs?: number } = {}) {
    this.#address = path;
    this.#timeoutMs = timeoutMs;
    this.#client = new Client(`unix:${path}`, credentials.createInsecure(), {
      "grpc.max_receive_message_length": MESSAGE_LIMIT,
      "grpc.max_send_message_length": MESSAGE_LIMIT,
      "grpc.default_authority": "localhost", // as grpc-go does for unix sockets; a path there is refused by some servers
      "grpc.enable_channelz": 0,
    });
  }

  unary<Request, Response>(
    method: Method<Request, Response, "none">,
    request: Partial<Request>,
    options: CallOptions = {},
  ): Promise<Response> {
    throwIfAborted(options.signal);
    return new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest<Partial<Request>, Response>(
        method.path,
        (value) => method.encodeRequest(value),
        (bytes) => method.decodeResponse(bytes),
        request,
        metadataOf(options),
        { deadline: this.#deadlineOf(options) },
        (error, response) => {
          release();
          if (error) reject(this.#explain(method.name, error, options.signal));
          else resolve(response!);
        },
      );
      const release = onAbort(options.signal, () => call.cancel());
    });
  }

  async *stream<Request, Response>(
    method: Method<Request, Response, "response">,
    request: Partial<Request>,
    options: CallOptions = {},
  ): AsyncGenerator<Response> {
    throwIfAborted(options.signal);
    const call = this.#client.makeServerStreamRequest<Partial<Request>, Response>(
      method.path,
      (value) => method.encodeRequest(value),
      (bytes) => method.decodeResponse(bytes),
      request,
      metadataOf(options),
      { deadline: this.#deadlineOf(options) },
    );
    const release = onAbort(options.signal, () => call.cancel());
    try {
      for await (const response of call) yield response as Response;
    } catch (error) {
      throw this.#explain(method.name, error, options.signal);
    } finally {
      release();
      call.cancel(); // no effect on one that has ended
    }
  }

  exchange<Request, Response>(
    method: Method<Request, Response, "both">,
    options: CallOptions = {},
  ): Exchange<Request, Response> {
    throwIfAborted(options.signal);
    const call: ClientDuplexStream<Partial<Request>, Response> = this.#client.makeBidiStreamRequest(
      method.path,
      (value: Partial<Request>) => method.encodeRequest(value),
      (bytes: Buffer) => method.decodeResponse(bytes),
      metadataOf(options),
      { deadline: this.#deadlineOf(options) },
    );
    const release = onAbort(options.signal, () => call.cancel());
    const responses = call[Symbol.asyncIterator]();
    const address = this.#address;
    const next = async (): Promise<IteratorResult<Response>> => {
      try {
        return (await responses.next()) as IteratorResult<Response>;
      } catch (error) {
        throw this.#explain(method.name, error, options.signal);
      }
    };
    return {
      async send(request) {
        call.write(request);
        const { done, value } = await next();
        if (done === true) throw errorOf(13, `Cannot call ${method.name} at ${address}`, "it ended early", undefined);
        return value;
      },
      async end() {
        call.end();
        while ((await next()).done !== true);
        release();
      },
      [Symbol.dispose]() {
        release();
        call.cancel();
      },
    };
  }

  [Symbol.dispose](): void {
    this.#client.close();
  }

  #deadlineOf({ timeoutMs = this.#timeoutMs }: CallOptions): number {
    return Date.now() + timeoutMs;
  }

  #explain(name: string, error: unknown, signal: AbortSignal | undefined): unknown {
    if (signal?.aborted) return cancelled(signal);
    if (!isServiceError(error)) return error;
    return errorOf(error.code, `Cannot call ${name} at ${this.#address}`, error.details, error);
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && typeof error.code === "number" && "details" in error;
}

function metadataOf({ headers = {} }: CallOptions): Metadata {
  const metadata = new Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
  return metadata;
}

function onAbort(signal: AbortSignal | undefined, stop: () => void): () => void {
  signal?.addEventListener("abort", stop, { once: true });
  return () => signal?.removeEventListener("abort", stop);
}
