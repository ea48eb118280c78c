/**
 * gRPC over unix sockets: methods from `.proto` files, a server, a client, and the one table between errors and status codes.
 *
 * Guarantees: messages have at most 16 MiB; a cancelled or late call reaches its handler as an aborted signal; the socket is 0600
 * and never taken from a process that answers on it. Knows no service.
 */
export { type CallOptions, type Exchange, RpcClient } from "./client.ts";
export { type AnyMethod, loadService, type Method } from "./proto.ts";
export { type Call, type CallRecord, type Handlers, MESSAGE_LIMIT, RpcServer } from "./server.ts";
export { errorOf, STATUS, type Status, type StatusName, statusOf } from "./status.ts";
