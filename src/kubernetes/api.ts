/**
 * GET requests to a cluster's API server. The kubeconfig, and the files it names, are read for each: tokens and certificates
 * are renewed in place. One connection a request; they are few and long.
 */
import type { IncomingMessage } from "node:http";
import { request } from "node:https";
import { cancelled, throwIfAborted } from "../async/index.ts";
import { type ErrorCode, ShaleError } from "../errors/index.ts";
import { type ExecCredential, runExecPlugin } from "./exec-credential.ts";
import { type Cluster, readKubeconfig, type User } from "./kubeconfig.ts";

/** Between two pieces of an answer; a watch gets a bookmark about each minute. */
const STALL_MS = 6 * 60_000;
/** A plugin's credentials are not used in their last seconds. */
const EXPIRY_MARGIN_MS = 60_000;

export class ClusterApi {
  readonly #kubeconfig: string;
  #plugin: ExecCredential | undefined;

  constructor(kubeconfig: string) {
    this.#kubeconfig = kubeconfig;
  }

  /**
   * The body of GET `path`, as it comes. ShaleError: UNAUTHENTICATED, PERMISSION_DENIED, ABORTED (410: the version asked for
   * is gone), UNAVAILABLE; FAILED_PRECONDITION for a kubeconfig that can't be used. Leaving the iteration ends the request.
   */
  async *get(path: string, query: Readonly<Record<string, string>>, signal: AbortSignal): AsyncGenerator<Buffer> {
    throwIfAborted(signal);
    const cluster = readKubeconfig(this.#kubeconfig);
    const user = await this.#userOf(cluster, signal);
    const url = new URL(cluster.server);
    url.pathname = `${url.pathname.replace(/\/+$/, "")}${path}`;
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
    const act = `Cannot ask ${cluster.server.host} for ${path}`;
    let response: IncomingMessage | undefined;
    try {
      response = await send(url, cluster, user, signal);
      const { statusCode = 0 } = response;
      if (statusCode !== 200) {
        if (statusCode === 401) this.#plugin = undefined;
        throw new ShaleError(codeOf(statusCode), `${act}: it answers HTTP ${statusCode}`);
      }
      for await (const piece of response) yield piece as Buffer;
    } catch (error) {
      if (signal.aborted) throw cancelled(signal);
      if (error instanceof ShaleError) throw error;
      const reason = error instanceof Error ? error.message : String(error);
      throw new ShaleError("UNAVAILABLE", `${act}: ${reason}`, { cause: error });
    } finally {
      response?.destroy();
    }
  }

  async #userOf({ user }: Cluster, signal: AbortSignal): Promise<User> {
    if (user.exec === undefined) return user;
    if (this.#plugin === undefined || this.#plugin.expiresAt - EXPIRY_MARGIN_MS < Date.now()) {
      this.#plugin = await runExecPlugin(user.exec, signal);
    }
    return { ...user, ...this.#plugin.user };
  }
}

function send(url: URL, cluster: Cluster, user: User, signal: AbortSignal): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const outgoing = request(url, {
      method: "GET",
      agent: false,
      headers: {
        accept: "application/json",
        "user-agent": "shale",
        ...(user.authorization === undefined ? {} : { authorization: user.authorization }),
      },
      rejectUnauthorized: !cluster.insecure,
      ...(cluster.ca === undefined ? {} : { ca: cluster.ca }),
      ...(cluster.serverName === undefined ? {} : { servername: cluster.serverName }),
      ...(user.certificate ?? {}),
      timeout: STALL_MS,
      signal,
    });
    outgoing.once("response", resolve);
    outgoing.once("error", reject);
    outgoing.once("timeout", () => outgoing.destroy(new Error(`nothing came for ${STALL_MS / 1000} s`)));
    outgoing.end();
  });
}

function codeOf(status: number): ErrorCode {
  switch (status) {
    case 401:
      return "UNAUTHENTICATED";
    case 403:
      return "PERMISSION_DENIED";
    case 410:
      return "ABORTED";
    default:
      return "UNAVAILABLE";
  }
}
