import { displayName, findImage } from "../../images/find.ts";
import { isTocIdentity, type LayerRecord } from "../../store/index.ts";
import { formatBytes, formatCount, formatTable, shortDigest } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { defineCommand } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const layers = defineCommand({
  name: "layers",
  summary: "List layers with their sizes",
  description: `
For each layer: its diffID, the number of its entries, the bytes of its files (size), of these the ones that it brought
(own) and the ones that were in the store already or twice in it (shared), its metadata, small files included, and the
images that have it. A layer that is verified by its table of contents (eStargz, pulled in parts) is listed by that one's
digest, after "toc:". With REF, the layers of that image only, lowest first.
`,
  arguments: [{ name: "REF", help: "Image whose layers to list", optional: true, completes: "image" }],
  options: {
    platform: PLATFORM,
  },
  examples: [
    { command: "shale layers", help: "All layers of the store" },
    { command: "shale layers python:3.12", help: "Those of one image, lowest first" },
  ],
  async run(context) {
    const { values, positionals } = context;
    await using store = await openStore(context);
    let records = store.listLayers();
    if (positionals[0] !== undefined) {
      const { manifest } = findImage(store, positionals[0], values.platform);
      const known = new Map(records.filter((one) => one.damage === undefined).map((one) => [one.diffId, one]));
      for (const one of records) if (!known.has(one.diffId)) known.set(one.diffId, one);
      records = manifest.layers.flatMap(({ diffId }) => known.get(diffId) ?? []);
    }
    const users = store.imagesOfLayers();
    const rows = records.map((record) => describeLayer(record, users.get(record.diffId) ?? []));
    await emit(context, { layers: rows }, ({ layers }) => formatLayers(layers));
    return undefined;
  },
});

export interface LayerRow {
  /** "toc+sha256:..." of a layer that is verified by its table of contents, whose digest it is. */
  readonly diffId: string;
  readonly verifiedBy: "diffId" | "toc";
  readonly entries: number;
  readonly tarSize: number;
  readonly contentBytes: number;
  readonly ownBytes: number;
  readonly sharedBytes: number;
  readonly inlineBytes: number;
  readonly metadataBytes: number;
  readonly committedAt: Date;
  readonly images: readonly string[];
  /** Why `check` took it out of sight. */
  readonly damage: string | undefined;
}

export function describeLayer(record: LayerRecord, images: readonly string[]): LayerRow {
  const { diffId, entries, tarSize, contentBytes, ownBytes, sharedBytes, inlineBytes, metadataBytes } = record;
  const { committedAt, damage } = record;
  const bytes = { tarSize, contentBytes, ownBytes, sharedBytes, inlineBytes, metadataBytes };
  const verifiedBy = isTocIdentity(diffId) ? "toc" : "diffId";
  return { diffId, verifiedBy, entries, ...bytes, committedAt, images, damage };
}

/** Image names beyond these are counted: a base layer may be in hundreds. */
const SHOWN_IMAGES = 2;

export function formatLayers(layers: readonly LayerRow[]): string {
  return formatTable(
    [
      { header: "DIFFID", cell: (layer) => `${layer.verifiedBy === "toc" ? "toc:" : ""}${shortDigest(layer.diffId)}` },
      { header: "ENTRIES", cell: (layer) => formatCount(layer.entries), align: "right" },
      { header: "SIZE", cell: (layer) => formatBytes(layer.contentBytes), align: "right" },
      { header: "OWN", cell: (layer) => formatBytes(layer.ownBytes), align: "right" },
      { header: "SHARED", cell: (layer) => formatBytes(layer.sharedBytes), align: "right" },
      { header: "METADATA", cell: (layer) => formatBytes(layer.metadataBytes), align: "right" },
      { header: "IMAGES", cell: (layer) => (layer.damage === undefined ? imagesText(layer.images) : "damaged") },
    ],
    layers,
  );
}

function imagesText(images: readonly string[]): string {
  const shown = images.slice(0, SHOWN_IMAGES).map((name) => singleLine(displayName(name)));
  if (images.length > SHOWN_IMAGES) shown.push(`and ${formatCount(images.length - SHOWN_IMAGES)} more`);
  return shown.length === 0 ? "-" : shown.join(", ");
}
