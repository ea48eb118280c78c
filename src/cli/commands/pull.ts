import { displayName } from "../../images/find.ts";
import type { PullOutlook } from "../../images/forecast.ts";
import type { PullResult } from "../../images/pull.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes, formatCount, formatDuration, shortDigest } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { isTocIdentity } from "../../store/index.ts";
import { formatJson } from "../output.ts";
import { PLATFORM, REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";

export const pull = defineCommand({
  name: "pull",
  summary: "Fetch images, and index and store their layers",
  description: `
Fetches each REF from where it says: a registry (host/name:tag, name@digest, and Docker Hub's short names), an OCI
layout (oci:DIR:tag) or a docker archive (docker-archive:FILE). Every layer is verified, decompressed and indexed in one
pass; a layer that is already stored is not fetched, and a file that is already stored is not stored again. An
interrupted download goes on where it stopped. When the command has ended, the image is complete and durable.

Of a layer in zstd:chunked or eStargz form, only the chunks that the store does not have are fetched (docs/partial.md).
With --dry-run nothing else is fetched than its table of contents, and what a pull would do is printed. An eStargz layer in
parts is verified by its table of contents instead of its diffID, and marked so; --whole has the diffID computed.

Credentials are read from the docker configuration, including its credential helpers; mirrors from hosts.toml files as
containerd reads them.
`,
  arguments: [
    {
      name: "REF",
      help: "Image to fetch: host/name:tag, name@sha256:..., oci:DIR:tag or docker-archive:FILE",
      repeated: true,
    },
  ],
  options: {
    platform: PLATFORM,
    "all-platforms": { type: "flag", help: "Fetch every platform of a multi-platform image" },
    ...REGISTRY,
    whole: { type: "flag", help: "Fetch layers as a whole, also where parts would do" },
    "dry-run": { type: "flag", help: "Only tell what would be fetched" },
    jobs: {
      type: "number",
      short: "j",
      value: "N",
      minimum: 1,
      maximum: 64,
      help: "Layers to work on at a time, instead of one per processor",
    },
  },
  examples: [
    { command: "shale pull python:3.12", help: "An image of Docker Hub for this machine's platform" },
    {
      command: "shale pull --platform linux/arm64 registry.example/app@sha256:6b5d...",
      help: "A certain image for another platform",
    },
    { command: "shale pull --tls-verify=false localhost:5000/app:dev", help: "A registry without TLS" },
    { command: "shale pull oci:./layout:v1", help: "From an OCI layout on disk" },
    { command: "shale pull --dry-run registry.example/app:2", help: "How much of the image is missing" },
  ],
  async run(context) {
    const { values, log, progress, signal } = context;
    const { parseImageSource, parsePlatform, platformOfNode } = await import("../../oci/index.ts");
    const sources = context.positionals.map(parseImageSource);
    const host = platformOfNode(process.arch);
    const platform = values.platform === undefined ? undefined : parsePlatform(values.platform, host);
    const { registryAccess } = await import("./registry-access.ts");
    const { hostsOf, withOrigin } = await import("./origin-access.ts");
    const { pullImage } = await import("../../images/pull.ts");
    await using registry = registryAccess(values, {
      log,
      hosts: () => hostsOf(sources),
      ...(values.jobs === undefined ? {} : { maxConnections: values.jobs }),
    });
    await using store = await openStore(context, { create: true });
    const images: PulledImage[] = [];
    const outlooks: PullOutlook[] = [];
    try {
      for (const source of sources) {
        const startMs = performance.now();
        const options = {
          signal,
          progress,
          allPlatforms: values["all-platforms"],
          whole: values.whole,
          ...(platform === undefined ? {} : { platform }),
          ...(values.jobs === undefined ? {} : { jobs: values.jobs }),
        };
        await withOrigin(source, { registry, signal }, async (origin) => {
          if (values["dry-run"]) {
            const { forecastPull } = await import("../../images/forecast.ts");
            const outlook = await forecastPull(store, origin, options);
            outlooks.push(outlook);
            if (!context.json) await context.stdout.write(`${formatOutlook(outlook)}\n`);
            return;
          }
          const result = await pullImage(store, origin, options);
          const image = describePull(result, performance.now() - startMs);
          images.push(image);
          if (!context.json) await context.stdout.write(`${formatPull(image)}\n`);
        });
      }
    } finally {
      // Also what was pulled before one failed: it is there.
      if (context.json) await context.stdout.write(formatJson(values["dry-run"] ? { outlooks } : { images }));
    }
    return undefined;
  },
});

export interface PulledImage {
  readonly name: string;
  readonly digest: string;
  readonly manifests: readonly { readonly digest: string; readonly platform: string }[];
  readonly layers: readonly {
    /** As the image's config names it. */
    readonly diffId: string;
    /** "toc": nobody has computed the diffId; the contents are those of the layer's table of contents. */
    readonly verifiedBy: "diffId" | "toc";
    /** Of the blob that the origin has; absent where only the tar's own digest is known. */
    readonly digest: string | undefined;
    readonly state: "fetched" | "present" | "shared";
    readonly size: number;
    readonly received: number;
    /** Where it was put together from parts: bytes of files and chunks that the store had. */
    readonly reused: number | undefined;
    /** Bytes that this layer added to the store, payloads and metadata; 0 unless it was fetched here. */
    readonly stored: number;
  }[];
  readonly received: number;
  readonly stored: number;
  readonly elapsedMs: number;
}

export function describePull(result: PullResult, elapsedMs: number): PulledImage {
  const layers = result.layers.map(({ diffId, digest, state, size, received, record, parts }) => ({
    diffId,
    verifiedBy: isTocIdentity(record.diffId) ? ("toc" as const) : ("diffId" as const),
    digest,
    state,
    size,
    received,
    reused: parts && parts.referredBytes + parts.copiedBytes,
    stored: state === "fetched" ? record.ownBytes + record.metadataBytes : 0,
  }));
  return {
    name: result.name,
    digest: result.digest,
    manifests: result.manifests.map(({ digest, platform }) => ({ digest, platform })),
    layers,
    received: layers.reduce((sum, layer) => sum + layer.received, 0),
    stored: layers.reduce((sum, layer) => sum + layer.stored, 0),
    elapsedMs: Math.round(elapsedMs * 10) / 10,
  };
}

/** "app:1 (sha256:0123456789ab): 2 layers fetched, 3 already here; 12 MB received, 20 MB new in the store; 1.2 s". */
export function formatPull(image: PulledImage): string {
  const count = (state: string) => image.layers.filter((layer) => layer.state === state).length;
  const fetched = count("fetched");
  const shared = count("shared");
  const present = count("present");
  const inParts = image.layers.filter((layer) => layer.reused !== undefined).length;
  const how = inParts === 0 ? "" : inParts === fetched ? " in parts" : ` (${inParts} in parts)`;
  const layers = [
    ...(fetched > 0 || image.layers.length === 0 ? [`${countOf(fetched, "layer")} fetched${how}`] : []),
    ...(shared > 0 ? [`${countOf(shared, "layer")} fetched by another pull`] : []),
    ...(present > 0 ? [fetched + shared > 0 ? `${present} already here` : `${allOf(present)} already here`] : []),
  ].join(", ");
  const bytes =
    fetched > 0 ? `; ${formatBytes(image.received)} received, ${formatBytes(image.stored)} new in the store` : "";
  return `${singleLine(displayName(image.name))} (${shortDigest(image.digest)}): ${layers}${bytes}; ${formatDuration(image.elapsedMs)}`;
}

function allOf(count: number): string {
  return count === 1 ? "its layer is" : `all ${formatCount(count)} layers are`;
}

/** One line a layer and one for all. */
export function formatOutlook({ name, layers }: PullOutlook): string {
  const lines = layers.map((layer) => {
    const { digest, diffId, size, how, why, parts, fetchBytes, requests } = layer;
    const head = `  ${shortDigest(digest ?? diffId)}  ${formatBytes(size).padStart(8)}  `;
    if (how === "present") return `${head}already here`;
    if (how === "whole") return `${head}whole${why === undefined ? "" : `: ${singleLine(why)}`}`;
    const { referredBytes, referredFiles, copiedBytes, copiedChunks, missingChunks } = parts!.plan;
    const here = `${formatBytes(referredBytes)} in ${countOf(referredFiles, "file")} and ${formatBytes(copiedBytes)} in ${countOf(copiedChunks, "chunk")} are here`;
    return `${head}in parts: ${formatBytes(fetchBytes)} in ${countOf(requests, "request")} for ${countOf(missingChunks, "chunk")}; ${here}`;
  });
  const sum = (of: (layer: PullOutlook["layers"][number]) => number) =>
    layers.reduce((total, one) => total + of(one), 0);
  const missing = layers.filter(({ how }) => how !== "present");
  const fetch = sum(({ fetchBytes }) => fetchBytes);
  const saved = missing.reduce((total, one) => total + (one.how === "parts" ? one.size - one.fetchBytes : 0), 0);
  const requests = sum((layer) => layer.requests);
  const time = Math.max(0, ...layers.map(({ timeMs }) => timeMs));
  const total =
    missing.length === 0
      ? "nothing to fetch"
      : `to fetch: ${formatBytes(fetch)} in ${countOf(requests, "request")}, ${formatBytes(saved)} less than the whole; about ${formatDuration(time)}`;
  return [`${singleLine(displayName(name))}: ${countOf(layers.length, "layer")}`, ...lines, total].join("\n");
}
