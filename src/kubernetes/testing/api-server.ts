/** A small Kubernetes API server over TLS that knows secrets, and the kubeconfig to reach it by. For tests only. */
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TLSSocket } from "node:tls";

export const TYPE = "kubernetes.io/dockerconfigjson";

export interface FakeApi extends AsyncDisposable {
  readonly directory: string;
  readonly origin: string;
  /** Path and query of each request so far, with the name that a client certificate proved. */
  readonly requests: readonly { readonly url: string; readonly who: string | undefined }[];
  /** Values of Authorization that are let in besides the client certificate. */
  readonly accepted: Set<string>;
  /** Adds or changes a secret; open watches are told. */
  put(name: string, config: unknown, options?: { readonly type?: string; readonly raw?: string }): void;
  remove(name: string): void;
  /** Ends all watches as their time would. */
  endWatches(): void;
  /** Tells all watches that their version is gone. */
  expire(): void;
  /** In place of an answer, for as long as it is set. */
  fault: ((request: IncomingMessage, response: ServerResponse) => void) | undefined;
  /** Writes a kubeconfig with this user; returns its path. */
  kubeconfig(user: object, cluster?: object): string;
  readonly ca: string;
  readonly clientCert: string;
  readonly clientKey: string;
}

interface Item {
  readonly type: string;
  readonly metadata: { readonly namespace: string; readonly name: string; readonly resourceVersion: string };
  readonly data: Readonly<Record<string, string>>;
}

export async function startFakeApi(options: { readonly pageSize?: number } = {}): Promise<FakeApi> {
  const directory = mkdtempSync(join(tmpdir(), "shale-kubernetes-"));
  const at = (name: string) => join(directory, name);
  const openssl = (...words: string[]) => execFileSync("openssl", words, { stdio: "pipe" });
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  openssl("req", "-x509", ...curve, "-subj", "/CN=ca", "-keyout", at("ca.key"), "-out", at("ca.pem"));
  for (const [name, extension] of [
    ["server", "subjectAltName=IP:127.0.0.1"],
    ["client", "extendedKeyUsage=clientAuth"],
  ] as const) {
    openssl(
      "req",
      ...curve.slice(0, 5),
      "-subj",
      `/CN=${name}`,
      "-keyout",
      at(`${name}.key`),
      "-out",
      at(`${name}.csr`),
    );
    writeFileSync(at(`${name}.ext`), extension);
    openssl(
      ..."x509 -req -days 2 -CAcreateserial".split(" "),
      ...["-in", at(`${name}.csr`), "-CA", at("ca.pem"), "-CAkey", at("ca.key")],
      ...["-extfile", at(`${name}.ext`), "-out", at(`${name}.pem`)],
    );
  }
  const read = (name: string) => readFileSync(at(name), "utf8");
  const items = new Map<string, Item>();
  const watches = new Set<ServerResponse>();
  const requests: { url: string; who: string | undefined }[] = [];
  const accepted = new Set<string>();
  let version = 100;
  const tell = (type: string, object: unknown) => {
    // In two pieces: a reader must not depend on where they are cut.
    const line = `${JSON.stringify({ type, object })}\n`;
    for (const watch of watches) {
      watch.write(line.slice(0, 20));
      watch.write(line.slice(20));
    }
  };
  const api: Omit<FakeApi, "origin" | typeof Symbol.asyncDispose> = {
    directory,
    requests,
    accepted,
    fault: undefined,
    ca: read("ca.pem"),
    clientCert: read("client.pem"),
    clientKey: read("client.key"),
    put(name, config, { type = TYPE, raw } = {}) {
      const there = items.has(name);
      const text = raw ?? Buffer.from(JSON.stringify(config)).toString("base64");
      const item: Item = {
        type,
        metadata: { namespace: "default", name, resourceVersion: String(++version) },
        data: { ".dockerconfigjson": text },
      };
      items.set(name, item);
      tell(there ? "MODIFIED" : "ADDED", item);
    },
    remove(name) {
      const item = items.get(name);
      items.delete(name);
      tell("DELETED", item);
    },
    endWatches() {
      for (const watch of watches) watch.end();
    },
    expire() {
      tell("ERROR", { kind: "Status", code: 410, message: "too old resource version" });
    },
    kubeconfig(user, cluster = { "certificate-authority": "ca.pem" }) {
      const path = at(`kubeconfig-${requests.length}-${Math.random()}`);
      // JSON is YAML; the comment shows that it is read as such.
      const document = {
        "current-context": "test",
        contexts: [{ name: "test", context: { cluster: "c", user: "u" } }],
        clusters: [{ name: "c", cluster: { server: origin, ...cluster } }],
        users: [{ name: "u", user }],
      };
      writeFileSync(path, `# made for a test\n${JSON.stringify(document, undefined, 2)}\n`);
      return path;
    },
  };
  const server = createServer(
    {
      key: read("server.key"),
      cert: read("server.pem"),
      ca: read("ca.pem"),
      requestCert: true,
      rejectUnauthorized: false,
    },
    (request, response) => {
      const socket = request.socket as TLSSocket;
      const who = socket.authorized ? String(socket.getPeerCertificate().subject.CN) : undefined;
      requests.push({ url: request.url ?? "", who });
      if (api.fault !== undefined) return api.fault(request, response);
      if (who !== "client" && !accepted.has(request.headers.authorization ?? "")) {
        response.writeHead(401).end();
        return;
      }
      const url = new URL(request.url ?? "", "https://x");
      if (url.pathname !== "/api/v1/secrets" || url.searchParams.get("fieldSelector") !== `type=${TYPE}`) {
        response.writeHead(404).end();
        return;
      }
      response.writeHead(200, { "content-type": "application/json" });
      if (url.searchParams.get("watch") === "1") {
        response.flushHeaders();
        watches.add(response);
        response.on("close", () => watches.delete(response));
        return;
      }
      const all = [...items.values()];
      const start = Number(url.searchParams.get("continue") ?? 0);
      const end = start + (options.pageSize ?? all.length);
      const next = end < all.length ? String(end) : "";
      const metadata = { resourceVersion: String(version), ...(next === "" ? {} : { continue: next }) };
      response.end(JSON.stringify({ kind: "SecretList", metadata, items: all.slice(start, end) }));
    },
  );
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const origin = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return Object.assign(api, {
    origin,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
      rmSync(directory, { recursive: true });
    },
  });
}
