/**
 * From `.proto` files to typed method descriptions, for server and client alike. Read once, when the first is asked for.
 *
 * Decoded messages are plain objects: every field is there (absent scalars as their zero, lists and maps empty, absent messages
 * null), names in camelCase, 64-bit integers as numbers. What is larger than 2^53 is rounded: all of them here are sizes, times and
 * offsets. Unknown fields are dropped, as protobuf wants.
 */
import { readFile } from "../sys/index.ts";
import { fileURLToPath } from "node:url";
import protobuf from "protobufjs";

/** Our own files, and small. */
const PROTO_LIMIT = 64 * 1024;

/** `stream` says which side sends many messages. */
export type StreamKind = "none" | "response" | "both";

/** One rpc: its path on the wire, and how its messages become bytes. */
export interface Method<Request, Response, Stream extends StreamKind = StreamKind> {
  readonly service: string;
  readonly name: string;
  readonly path: string;
  readonly stream: Stream;
  encodeRequest(value: Partial<Request>): Buffer;
  decodeRequest(bytes: Uint8Array): Request;
  encodeResponse(value: Partial<Response>): Buffer;
  decodeResponse(bytes: Uint8Array): Response;
}

// biome-ignore lint/suspicious/noExplicitAny: a table of methods of any types; each is given its own where it is used
export type AnyMethod = Method<any, any>;

/**
 * The methods of `service` ("containerd.services.diff.v1.Diff"), with the types that the caller knows them by: M maps each name to
 * its method. A RangeError where the files have no such service, or a method in M differs in its streams: a mistake of ours.
 */
export function loadService<M extends Readonly<Record<string, AnyMethod>>>(
  files: readonly URL[],
  service: string,
  streams: { readonly [K in keyof M]: M[K]["stream"] },
): M {
  const described = rootOf(files).lookupService(service);
  const methods = Object.entries(streams).map(([name, stream]) => {
    const method = described.methods[name];
    const actual = method?.responseStream ? (method.requestStream ? "both" : "response") : "none";
    if (method === undefined || actual !== stream) throw new RangeError(`${service}/${name} is not as ${stream}`);
    method.resolve();
    return [name, methodOf(service, method, stream)] as const;
  });
  // Names and streams are those of M, as checked above; the types of the messages are what this function is asked to vouch for.
  return Object.fromEntries(methods) as M;
}

const roots = new Map<string, protobuf.Root>();

function rootOf(files: readonly URL[]): protobuf.Root {
  const key = files.map((file) => file.href).join(" ");
  let root = roots.get(key);
  if (root !== undefined) return root;
  root = new protobuf.Root();
  for (const file of files) {
    const { imports = [] } = protobuf.parse(readFile(fileURLToPath(file), PROTO_LIMIT).toString(), root);
    for (const name of imports) {
      const nested = name.startsWith("google/protobuf/") ? protobuf.common.get(name)?.nested : undefined;
      if (nested !== undefined && nested !== null) root.addJSON(nested);
    }
  }
  root.resolveAll();
  roots.set(key, root);
  return root;
}

function methodOf(service: string, method: protobuf.Method, stream: StreamKind): AnyMethod {
  const { resolvedRequestType: request, resolvedResponseType: response, name } = method;
  if (request === null || response === null) throw new RangeError(`${service}/${name} has an unknown message`);
  return {
    service,
    name,
    path: `/${service}/${name}`,
    stream,
    encodeRequest: (value) => encode(request, value),
    decodeRequest: (bytes) => decode(request, bytes),
    encodeResponse: (value) => encode(response, value),
    decodeResponse: (bytes) => decode(response, bytes),
  };
}

function encode(type: protobuf.Type, value: Record<string, unknown>): Buffer {
  return Buffer.from(type.encode(type.fromObject(value)).finish());
}

function decode(type: protobuf.Type, bytes: Uint8Array): Record<string, unknown> {
  return type.toObject(type.decode(bytes), { longs: Number, defaults: true, arrays: true, objects: true });
}
