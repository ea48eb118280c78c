import type { AccessRecord } from "../../server/index.ts";
import { defineCommand } from "../command.ts";
import { countOf } from "../format.ts";
import type { Log } from "../../log/index.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";

/** Answers that are under way when the command is stopped may take so long to end. */
const DRAIN_MS = 10_000;
/** The first manifest of an image with compressed layers is answered when they have been compressed once. */
const IDLE_WITH_COMPRESSION_MS = 600_000;

export const serve = defineCommand({
  name: "serve",
  summary: "Serve the store as a read-only registry",
  description: `
Answers the pull side of the OCI distribution protocol over HTTP: manifests, configs and layers, so that another shale,
skopeo, podman or containerd can pull what is stored here. There is no authentication: use a loopback address, or put a
proxy before it. Runs until it is stopped.

An image docker.io/library/app:1 is found as library/app:1 and as docker.io/library/app:1; the short form is left out where
images of several other hosts would have the same. Images without such a name are not served.

Layers travel as plain tars, or compressed with zstd: then each layer is compressed once before its image is first
answered, to learn its digest. The digest of a manifest is the one that it had when it was pulled if its layers were plain
tars there, else another one. A damaged layer breaks the connection; it is never sent as if it were whole.

Where a layer was pulled in parts and is verified by its table of contents (eStargz, see shale inspect), what its tar has
beside is fetched from the registry that it came from when its image is first asked for by a tag.
`,
  arguments: [],
  options: {
    addr: {
      type: "string",
      value: "HOST:PORT",
      default: "127.0.0.1:5000",
      help: "Address to listen on; port 0 takes a free one",
    },
    compression: {
      type: "string",
      value: "KIND",
      choices: ["none", "zstd"],
      default: "none",
      help: "How layers travel",
    },
    ...REGISTRY,
  },
  examples: [
    { command: "shale serve", help: "On port 5000 of this host" },
    { command: "shale serve --addr 0.0.0.0:8080 --compression zstd", help: "For the network" },
  ],
  async run(context) {
    const { values, log, signal } = context;
    const address = parseAddress(values.addr);
    const { delay } = await import("../../async/index.ts");
    const { storeProvider } = await import("../../images/serve.ts");
    const { startRegistry } = await import("../../server/index.ts");
    await using store = await openStore(context);
    const { formatTocDifference } = await import("../../images/complete.ts");
    const { registryAccess } = await import("./registry-access.ts");
    // Only what layers are completed from is asked. Images that are pulled while it serves may come from other registries.
    await using origins = registryAccess(values, { log, hosts: "all" });
    await using provider = storeProvider(store, {
      compression: values.compression,
      registry: origins.client,
      onDifference: (difference) => log.warn(formatTocDifference(difference)),
    });
    await using registry = await startRegistry(provider, {
      ...address,
      log: (record) => logAccess(log, record),
      ...(values.compression === "none" ? {} : { idleTimeoutMs: IDLE_WITH_COMPRESSION_MS }),
    });
    const repositories = [...(await provider.listRepositories())].length;
    const started = { url: registry.url, host: registry.host, port: registry.port, repositories };
    await emit(
      context,
      started,
      () => `${registry.url}: serving ${countOf(repositories, "repository", "repositories")}\n`,
    );
    await new Promise<void>((resolve) => {
      if (signal.aborted) return resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    log.info("Stopping: answers that are under way may end");
    const drained = new AbortController();
    await Promise.race([
      registry.close().finally(() => drained.abort()),
      delay(DRAIN_MS, { signal: drained.signal }).catch(() => undefined), // ended early: all is drained
    ]);
    return undefined;
  },
});

/** "HOST:PORT", ":PORT", "[::1]:PORT". */
export function parseAddress(text: string): { readonly host?: string; readonly port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/\s]*)):([0-9]{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (match === null || port > 65535) {
    throw new UsageError(`Cannot listen on ${text}: it is not HOST:PORT`, "for example 127.0.0.1:5000 or [::1]:5000");
  }
  const host = match[1] ?? match[2]!;
  return host === "" ? { port } : { host, port };
}

function logAccess(log: Log, record: AccessRecord): void {
  const { method, target, status, complete, client, error } = record;
  const fields = { method, target, status, client, ms: Math.round(record.durationMs) };
  if (error !== undefined && !isDeparture(record)) {
    log.error("Request failed", { ...fields, error: error instanceof Error ? error.message : String(error) });
  } else if (!complete) log.info("Client left before the end", fields);
  else log.debug("Request", fields);
}

/** What a client that goes away causes is not a failure of ours. */
function isDeparture({ error }: AccessRecord): boolean {
  return error instanceof Error && "code" in error && error.code === "CANCELLED";
}
