import { displayBytes } from "../../bytes/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { displayName, findImage, getImage } from "../../images/find.ts";
import { chainIdOf, type ImageConfig } from "../../oci/index.ts";
import { type ImageRecord, isTocIdentity, type ManifestRecord, type Store, tocDigestOf } from "../../store/index.ts";
import { formatBytes, formatCount, formatFields, formatTable, formatTime, shortDigest } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { defineCommand } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const inspect = defineCommand({
  name: "inspect",
  summary: "Show an image's configuration, layers and sizes",
  description: `
Shows what is known of an image: where it came from, its digests, its platform, how its process starts, its layers, and
its bytes. --raw prints a document exactly as the registry sent it, byte for byte.

An eStargz layer that was pulled in parts is marked: it is verified by its table of contents, which the manifest names, and
its diffID is what the configuration says, computed by nobody here. shale pull --whole has it computed.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", completes: "image" }],
  options: {
    platform: PLATFORM,
    raw: {
      type: "string",
      value: "DOCUMENT",
      choices: ["index", "manifest", "config"],
      help: "Print one document as it was received",
    },
  },
  examples: [
    { command: "shale inspect python:3.12", help: "For people" },
    {
      command: "shale inspect --raw manifest python:3.12 | sha256sum",
      help: "The manifest's bytes, which give its digest",
    },
  ],
  async run(context) {
    const { values, positionals } = context;
    const ref = positionals[0]!;
    await using store = await openStore(context);
    if (values.raw !== undefined) {
      await context.stdout.write(rawDocument(store, ref, values.raw, values.platform));
      return undefined;
    }
    const { image, manifest } = findImage(store, ref, values.platform);
    const inspection = inspectImage(store, image, manifest);
    await emit(context, inspection, formatInspection);
    return undefined;
  },
});

function rawDocument(
  store: Store,
  ref: string,
  document: "index" | "manifest" | "config",
  platform: string | undefined,
): Uint8Array {
  if (document === "index") {
    const image = getImage(store, ref);
    if (store.manifestsOf(image.name).some(({ digest }) => digest === image.digest)) {
      throw new ShaleError("NOT_FOUND", `Cannot print the index of ${displayName(image.name)}: it has none`, {
        hint: "The name leads to a manifest; use --raw manifest",
      });
    }
    return store.getDocument(image.digest).bytes;
  }
  const { manifest } = findImage(store, ref, platform);
  return store.getDocument(document === "manifest" ? manifest.digest : manifest.config).bytes;
}

export type Inspection = ReturnType<typeof inspectImage>;

export function inspectImage(
  store: Pick<Store, "manifestsOf" | "getConfig" | "findLayer">,
  image: ImageRecord,
  manifest: ManifestRecord,
) {
  const config: ImageConfig = store.getConfig(manifest);
  return {
    name: image.name,
    source: image.source,
    digest: image.digest,
    mediaType: image.mediaType,
    pinned: image.pinned,
    pulledAt: image.updatedAt,
    manifest: manifest.digest,
    config: manifest.config,
    // as containerd would have it: of what the config says, not of how layers are kept here
    chainId: config.diffIds.length === 0 ? undefined : chainIdOf(config.diffIds),
    platform: manifest.platform,
    platforms: store.manifestsOf(image.name).map(({ platform, digest }) => ({ platform, digest })),
    created: config.created,
    author: config.author,
    run: config.config,
    layers: manifest.layers.map(({ diffId: identity, digest, mediaType, size }, position) => {
      const byToc = isTocIdentity(identity);
      const layer = {
        diffId: byToc ? config.diffIds[position]! : identity,
        digest,
        mediaType,
        size,
        /** "toc": nobody has computed the diffId; the contents have the digests of the table of contents that has this digest. */
        verifiedBy: byToc ? ("toc" as const) : ("diffId" as const),
        toc: byToc ? tocDigestOf(identity) : undefined,
      };
      const record = store.findLayer(identity);
      if (record === undefined) return { ...layer, stored: undefined };
      const { tarSize, entries, contentBytes, ownBytes, sharedBytes, inlineBytes, metadataBytes, notices } = record;
      const bytes = { contentBytes, ownBytes, sharedBytes, inlineBytes, metadataBytes };
      const stored = {
        /** Absent where the tar is not here. */
        tarSize: byToc ? undefined : tarSize,
        entries,
        ...bytes,
        notices: notices.map((notice) => ({ ...notice, path: displayBytes(notice.path) })),
      };
      return { ...layer, stored };
    }),
  };
}

/** Notices of one layer that are shown; --json has all. */
const SHOWN_NOTICES = 5;

export function formatInspection(image: Inspection): string {
  const text = (value: string | undefined) => singleLine(value ?? "-");
  const { run } = image;
  const fields: (readonly [string, string])[] = [
    ["Name", text(displayName(image.name)) + (image.pinned ? " (pinned)" : "")],
    ["Source", text(image.source)],
    ["Digest", image.digest],
    ...(image.manifest === image.digest ? [] : [["Manifest", image.manifest] as const]),
    ["Config", image.config],
    ["Platform", text(image.platform)],
  ];
  const others = image.platforms.filter(({ digest }) => digest !== image.manifest);
  if (others.length > 0) fields.push(["Also for", text(others.map(({ platform }) => platform).join(", "))]);
  fields.push(["Created", text(image.created)], ["Pulled", formatTime(image.pulledAt)]);
  if (image.author !== undefined) fields.push(["Author", text(image.author)]);
  if (run.entrypoint.length > 0) fields.push(["Entrypoint", text(formatArgv(run.entrypoint))]);
  if (run.cmd.length > 0) fields.push(["Command", text(formatArgv(run.cmd))]);
  if (run.user !== undefined) fields.push(["User", text(run.user)]);
  if (run.workingDir !== undefined) fields.push(["Directory", text(run.workingDir)]);
  if (run.exposedPorts.length > 0) fields.push(["Ports", text(run.exposedPorts.join(", "))]);
  if (run.volumes.length > 0) fields.push(["Volumes", text(run.volumes.join(", "))]);
  if (run.stopSignal !== undefined) fields.push(["Stop signal", text(run.stopSignal)]);
  for (const [at, variable] of run.env.entries()) fields.push([at === 0 ? "Environment" : "", text(variable)]);
  for (const [at, [key, value]] of Object.entries(run.labels).entries()) {
    fields.push([at === 0 ? "Labels" : "", text(`${key}=${value}`)]);
  }
  return `${formatFields(fields)}\n${formatInspectedLayers(image.layers)}${formatNotices(image.layers)}`;
}

/** As a shell would need it typed. */
function formatArgv(argv: readonly string[]): string {
  return argv.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)).join(" ");
}

type InspectedLayer = Inspection["layers"][number];

function formatInspectedLayers(layers: readonly InspectedLayer[]): string {
  const bytes = (pick: (stored: NonNullable<InspectedLayer["stored"]>) => number) => (layer: InspectedLayer) =>
    layer.stored === undefined ? "?" : formatBytes(pick(layer.stored));
  return formatTable(
    [
      { header: "LAYER", cell: (layer) => String(layers.indexOf(layer)), align: "right" },
      { header: "DIFFID", cell: (layer) => shortDigest(layer.diffId) },
      { header: "DIGEST", cell: (layer) => shortDigest(layer.digest) },
      { header: "RECEIVED", cell: (layer) => formatBytes(layer.size), align: "right" },
      {
        header: "ENTRIES",
        cell: (layer) => (layer.stored === undefined ? "?" : formatCount(layer.stored.entries)),
        align: "right",
      },
      { header: "SIZE", cell: bytes((stored) => stored.contentBytes), align: "right" },
      { header: "OWN", cell: bytes((stored) => stored.ownBytes), align: "right" },
      { header: "SHARED", cell: bytes((stored) => stored.sharedBytes), align: "right" },
      { header: "INLINE", cell: bytes((stored) => stored.inlineBytes), align: "right" },
      { header: "METADATA", cell: bytes((stored) => stored.metadataBytes), align: "right" },
      { header: "", cell: remarkOf },
    ],
    layers,
  );
}

function remarkOf({ stored, verifiedBy }: InspectedLayer): string {
  if (stored === undefined) return "not in the store: run shale check";
  return verifiedBy === "toc" ? "verified by its table of contents" : "";
}

/** What layers had that is not in the images made of them. */
function formatNotices(layers: readonly InspectedLayer[]): string {
  return layers
    .map((layer, at) => {
      const notices = layer.stored?.notices ?? [];
      if (notices.length === 0) return "";
      const shown = notices.slice(0, SHOWN_NOTICES).map(({ path, message }) => `  ${singleLine(path)}: ${message}\n`);
      const more = notices.length - shown.length;
      if (more > 0) shown.push(`  and ${formatCount(more)} more, in --json\n`);
      return `\nIgnored in layer ${at}:\n${shown.join("")}`;
    })
    .join("");
}
