/**
 * How to reach a cluster, from a kubeconfig (kubernetes.io/docs/reference/config-api/kubeconfig.v1): the current context's
 * server, its authority, and one way of proving who asks. Files that it names are read when it is, relative to its own place.
 *
 * Errors name the file and the field, never a value.
 */
import { dirname, resolve } from "node:path";
import { parseDocument } from "yaml";
import { FormatError } from "../errors/index.ts";
import { readFile } from "../sys/index.ts";

export interface Cluster {
  readonly server: URL;
  /** PEM; the system's authorities when undefined. */
  readonly ca: string | undefined;
  /** In place of the server's host name. */
  readonly serverName: string | undefined;
  readonly insecure: boolean;
  readonly user: User;
}

export interface User {
  readonly certificate?: { readonly cert: string; readonly key: string };
  /** The value of the Authorization header. */
  readonly authorization?: string;
  readonly exec?: ExecPlugin;
}

export interface ExecPlugin {
  readonly apiVersion: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
}

const MAX_KUBECONFIG = 1 << 20;
const MAX_PEM = 1 << 20;
const MAX_TOKEN = 64 * 1024;
const EXEC_VERSIONS = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

type Fields = Readonly<Record<string, unknown>>;

/** FormatError FAILED_PRECONDITION for what can't be used; a system error when a file can't be read. */
export function readKubeconfig(path: string): Cluster {
  const reader = new Reader(path);
  const document = parseDocument(readFile(path, MAX_KUBECONFIG).toString("utf8"), { logLevel: "silent" });
  // The parser's own messages quote the text around a mistake, which may be a token.
  if (document.errors.length > 0) throw reader.fail("document", `is not YAML (${document.errors[0]!.code})`);
  const root = reader.object(resolveAliases(reader, document), "document");
  const current = reader.text(root, "current-context");
  if (current === undefined) throw reader.fail("current-context", "is missing");
  const context = reader.named(root, "contexts", current, "context");
  const cluster = reader.named(root, "clusters", reader.need(context, "cluster"), "cluster");
  const userName = reader.text(context, "user");
  const user = userName === undefined ? {} : reader.named(root, "users", userName, "user");
  const server = URL.parse(reader.need(cluster, "server"));
  if (server === null || server.protocol !== "https:") throw reader.fail("cluster.server", "is not an https URL");
  if (reader.text(cluster, "proxy-url") !== undefined) throw reader.fail("cluster.proxy-url", "is not supported");
  return {
    server,
    ca: reader.pem(cluster, "certificate-authority"),
    serverName: reader.text(cluster, "tls-server-name"),
    insecure: cluster["insecure-skip-tls-verify"] === true,
    user: readUser(reader, user),
  };
}

/** An alias without its anchor, and too many of one, are found only when they are followed. */
function resolveAliases(reader: Reader, document: ReturnType<typeof parseDocument>): unknown {
  try {
    return document.toJS({ maxAliasCount: 10 });
  } catch (error) {
    if (error instanceof ReferenceError) throw reader.fail("document", "has an alias that can't be followed");
    throw error;
  }
}

function readUser(reader: Reader, user: Fields): User {
  const cert = reader.pem(user, "client-certificate");
  const key = reader.pem(user, "client-key");
  if ((cert === undefined) !== (key === undefined)) {
    throw reader.fail("user", "has a client certificate without its key, or a key without its certificate");
  }
  const authorization = readAuthorization(reader, user);
  const exec = user.exec === undefined ? undefined : readExec(reader, reader.object(user.exec, "user.exec"));
  return {
    ...(cert === undefined || key === undefined ? {} : { certificate: { cert, key } }),
    ...(authorization === undefined ? {} : { authorization }),
    ...(exec === undefined ? {} : { exec }),
  };
}

/** A token file comes before a token: it is the one that is renewed. */
function readAuthorization(reader: Reader, user: Fields): string | undefined {
  const file = reader.text(user, "tokenFile");
  const token = file === undefined ? reader.text(user, "token") : reader.file(file, MAX_TOKEN).trim();
  if (token !== undefined) {
    if (!/^[\x21-\x7e]+$/.test(token)) throw reader.fail("user.token", "is not one word of ASCII");
    return `Bearer ${token}`;
  }
  const username = reader.text(user, "username");
  if (username === undefined) return undefined;
  const password = reader.text(user, "password") ?? "";
  return `Basic ${Buffer.from(`${username}:${password}`).toString("base64")}`;
}

function readExec(reader: Reader, exec: Fields): ExecPlugin {
  const apiVersion = reader.need(exec, "apiVersion");
  if (!EXEC_VERSIONS.includes(apiVersion)) {
    throw reader.fail("user.exec.apiVersion", `is none of ${EXEC_VERSIONS.join(", ")}`);
  }
  const command = reader.need(exec, "command");
  const env = reader.list(exec.env, "user.exec.env").map((entry) => {
    const pair = reader.object(entry, "user.exec.env");
    return [reader.need(pair, "name"), reader.text(pair, "value") ?? ""] as const;
  });
  return {
    apiVersion,
    // client-go: a bare name is looked up in PATH, anything with a slash is relative to the kubeconfig.
    command: command.includes("/") ? reader.path(command) : command,
    args: reader.list(exec.args, "user.exec.args").map((arg) => reader.string(arg, "user.exec.args")),
    env: Object.fromEntries(env),
  };
}

class Reader {
  readonly #file: string;

  constructor(file: string) {
    this.#file = file;
  }

  fail(field: string, problem: string): FormatError {
    return new FormatError(this.#file, field, problem, { code: "FAILED_PRECONDITION" });
  }

  object(value: unknown, field: string): Fields {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Fields;
    throw this.fail(field, "is not a mapping");
  }

  list(value: unknown, field: string): readonly unknown[] {
    if (value === undefined || value === null) return [];
    if (!Array.isArray(value)) throw this.fail(field, "is not a list");
    return value;
  }

  string(value: unknown, field: string): string {
    if (typeof value !== "string") throw this.fail(field, "is not a string");
    return value;
  }

  /** Undefined when absent or empty. */
  text(object: Fields, field: string): string | undefined {
    const value = object[field];
    return value === undefined || value === null || value === "" ? undefined : this.string(value, field);
  }

  need(object: Fields, field: string): string {
    const text = this.text(object, field);
    if (text === undefined) throw this.fail(field, "is missing");
    return text;
  }

  /** The entry `name` of one of the three lists. */
  named(root: Fields, list: string, name: string, member: string): Fields {
    for (const entry of this.list(root[list], list)) {
      const object = this.object(entry, list);
      if (object.name === name) return this.object(object[member], `${list}.${member}`);
    }
    throw this.fail(list, "has no entry of the name that the current context uses");
  }

  /** `FIELD-data` in base64, which wins as in kubectl, or the file `FIELD`. */
  pem(object: Fields, field: string): string | undefined {
    const data = this.text(object, `${field}-data`);
    if (data !== undefined) return Buffer.from(data, "base64").toString("utf8");
    const file = this.text(object, field);
    return file === undefined ? undefined : this.file(file, MAX_PEM);
  }

  file(path: string, limit: number): string {
    return readFile(this.path(path), limit).toString("utf8");
  }

  path(path: string): string {
    return resolve(dirname(this.#file), path);
  }
}
