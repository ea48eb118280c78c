/**
 * Credential plugins of client-go (kubernetes.io/docs/reference/access-authn-authz/authentication, "client-go credential
 * plugins"): a program that prints a token or a client certificate, and until when it is good.
 */
import { ShaleError } from "../errors/index.ts";
import { run } from "../sys/index.ts";
import type { ExecPlugin, User } from "./kubeconfig.ts";

export interface ExecCredential {
  readonly user: User;
  /** Milliseconds since 1970, Infinity when the plugin names no time. */
  readonly expiresAt: number;
}

const TIMEOUT_MS = 60_000;
const MAX_OUTPUT = 1 << 20;

/** A ShaleError without anything of the program's output when it fails. */
export async function runExecPlugin(plugin: ExecPlugin, signal: AbortSignal): Promise<ExecCredential> {
  const { apiVersion, command, args, env } = plugin;
  const fail = (problem: string) =>
    new ShaleError("FAILED_PRECONDITION", `Cannot get credentials for the cluster: ${command} ${problem}`);
  const info = { apiVersion, kind: "ExecCredential", spec: { interactive: false } };
  const result = await run(command, args, {
    env: { ...process.env, ...env, KUBERNETES_EXEC_INFO: JSON.stringify(info) },
    timeoutMs: TIMEOUT_MS,
    maxOutput: MAX_OUTPUT,
    signal,
  });
  if (result.code !== 0) throw fail(`ended with ${result.code ?? result.killedBy}`);
  const status = statusOf(result.stdout.toString("utf8"));
  if (status === undefined) throw fail("printed no ExecCredential with a status");
  const { token, clientCertificateData: cert, clientKeyData: key, expirationTimestamp } = status;
  const expires = typeof expirationTimestamp === "string" ? Date.parse(expirationTimestamp) : Number.NaN;
  const hasToken = typeof token === "string" && /^[\x21-\x7e]+$/.test(token);
  const hasCertificate = typeof cert === "string" && typeof key === "string";
  if (!hasToken && !hasCertificate) throw fail("printed neither a token nor a client certificate with its key");
  return {
    user: {
      ...(hasToken ? { authorization: `Bearer ${token}` } : {}),
      ...(hasCertificate ? { certificate: { cert, key } } : {}),
    },
    expiresAt: Number.isNaN(expires) ? Number.POSITIVE_INFINITY : expires,
  };
}

function statusOf(output: string): Readonly<Record<string, unknown>> | undefined {
  let value: unknown;
  try {
    value = JSON.parse(output);
  } catch (error) {
    if (error instanceof SyntaxError) return undefined; // its text would quote the token
    throw error;
  }
  if (typeof value !== "object" || value === null || !("status" in value)) return undefined;
  const { status } = value;
  return typeof status === "object" && status !== null ? (status as Readonly<Record<string, unknown>>) : undefined;
}
