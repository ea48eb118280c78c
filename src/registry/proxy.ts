/**
 * Proxies of the environment, chosen as Go's golang.org/x/net/http/httpproxy does (so as containerd, docker and podman do),
 * and tunnels through them (RFC 9110 section 9.3.6). Own code: undici's ProxyAgent connects again for ever when a proxy
 * closes the connection without an answer.
 */
import { BlockList, isIP, type Socket } from "node:net";
import type { TLSSocket } from "node:tls";
import type { buildConnector } from "undici";

/**
 * The proxy for `url`, or undefined to connect directly: HTTPS_PROXY or HTTP_PROXY by the URL's scheme, in lower case
 * first, unless NO_PROXY names the host. Loopback is never proxied. TypeError-free: what is no URL is no proxy.
 */
export function findProxy(url: URL, env: NodeJS.ProcessEnv): URL | undefined {
  const name = url.protocol === "https:" ? "https_proxy" : "http_proxy";
  const value = env[name] || env[name.toUpperCase()];
  if (!value || isLoopback(url.hostname)) return undefined;
  const proxy = URL.parse(value.includes("://") ? value : `http://${value}`);
  if (proxy === null || (proxy.protocol !== "http:" && proxy.protocol !== "https:")) return undefined;
  const exceptions = (env.no_proxy || env.NO_PROXY || "").split(/[\s,]+/).filter((one) => one !== "");
  return exceptions.some((one) => isException(url, one.toLowerCase())) ? undefined : proxy;
}

/** One entry of NO_PROXY: "*", a host or IP with an optional port, ".domain", "*.domain", a CIDR block. */
function isException(url: URL, entry: string): boolean {
  if (entry === "*") return true;
  const hostname = bare(url.hostname);
  const block = /^([0-9a-f.:]+)\/(\d{1,3})$/.exec(entry);
  if (block) {
    const family = isIP(block[1]!) === 6 ? "ipv6" : "ipv4";
    const prefix = Number(block[2]);
    if (isIP(block[1]!) === 0 || isIP(hostname) === 0 || prefix > (family === "ipv6" ? 128 : 32)) return false;
    const list = new BlockList();
    list.addSubnet(block[1]!, prefix, family);
    return list.check(hostname, isIP(hostname) === 6 ? "ipv6" : "ipv4");
  }
  const match = /^(\[[^\]]*\]|[^:]*|.*:.*:.*?)(?::(\d+))?$/.exec(entry);
  if (match === null) return false;
  const port = url.port || defaultPort(url.protocol);
  if (match[2] !== undefined && match[2] !== port) return false;
  const host = bare(match[1]!).replace(/^\*\./, ".");
  if (isIP(host) !== 0 || isIP(hostname) !== 0) return host === hostname;
  return host.startsWith(".") ? hostname.endsWith(host) : hostname === host || hostname.endsWith(`.${host}`);
}

export interface TunnelOptions {
  readonly timeoutMs: number;
  /** For https targets: what tls.connect needs beyond the socket. */
  readonly tls: object;
}

/** A connector for undici that reaches its target through `proxy`; fails in time, whatever the proxy does. */
export function tunnelConnector(proxy: URL, options: TunnelOptions): buildConnector.connector {
  return (target, callback) => {
    openTunnel(proxy, target, options).then(
      (socket) => callback(null, socket as TLSSocket),
      (error: unknown) => callback(error instanceof Error ? error : new Error(String(error)), null),
    );
  };
}

async function openTunnel(proxy: URL, target: buildConnector.Options, options: TunnelOptions): Promise<Socket> {
  const { request } = proxy.protocol === "https:" ? await import("node:https") : await import("node:http");
  const authority = `${target.hostname}:${target.port || defaultPort(target.protocol)}`;
  const userinfo = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`;
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const connect = request({
    method: "CONNECT",
    host: bare(proxy.hostname),
    port: proxy.port || defaultPort(proxy.protocol),
    path: authority,
    agent: false,
    headers: {
      host: authority,
      ...(proxy.username === "" ? {} : { "proxy-authorization": `Basic ${Buffer.from(userinfo).toString("base64")}` }),
    },
  });
  const timer = setTimeout(() => connect.destroy(proxyError(proxy, "it does not answer")), options.timeoutMs);
  connect.once("connect", (response, socket) => {
    if (response.statusCode === 200) return resolve(socket as Socket);
    socket.destroy();
    reject(proxyError(proxy, `it refuses (HTTP ${response.statusCode})`));
  });
  connect.once("error", (error) => {
    reject(error instanceof ProxyError ? error : proxyError(proxy, "it can't be reached", error));
  });
  connect.end();
  try {
    const socket = await promise;
    return target.protocol === "https:" ? await startTls(socket, target, options) : socket;
  } finally {
    clearTimeout(timer);
  }
}

async function startTls(socket: Socket, target: buildConnector.Options, options: TunnelOptions): Promise<TLSSocket> {
  const { connect } = await import("node:tls");
  const hostname = bare(target.hostname);
  const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
  const secure = connect({
    ...options.tls,
    socket,
    ALPNProtocols: ["http/1.1"],
    // a server name is a name, never an address: RFC 6066 section 3
    ...(isIP(hostname) === 0 ? { servername: hostname } : { host: hostname }),
  });
  const timer = setTimeout(() => secure.destroy(new Error("the TLS handshake timed out")), options.timeoutMs);
  secure.once("secureConnect", () => resolve(secure));
  secure.once("error", reject);
  secure.once("close", () => reject(new Error("the connection was closed")));
  try {
    const result = await promise;
    secure.removeListener("error", reject);
    return result;
  } finally {
    clearTimeout(timer);
  }
}

/** A proxy that fails; the message names it without its credentials. */
export class ProxyError extends Error {}

function proxyError(proxy: URL, problem: string, cause?: unknown): ProxyError {
  return new ProxyError(`the proxy ${proxy.host} fails: ${problem}`, cause === undefined ? undefined : { cause });
}

/** Hosts that are this machine. Takes URL.hostname's form of IPv6, and the bare one. */
export function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || bare(hostname) === "::1" || /^127(\.\d{1,3}){3}$/.test(hostname);
}

function bare(hostname: string): string {
  return hostname.startsWith("[") && hostname.endsWith("]") ? hostname.slice(1, -1) : hostname;
}

function defaultPort(protocol: string): string {
  return protocol === "https:" ? "443" : "80";
}
