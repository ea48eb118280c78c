import { displayName } from "../../images/find.ts";
import type { ImageSummary } from "../../store/index.ts";
import { formatBytes, formatTable, shortDigest } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { defineCommand } from "../command.ts";

export const images = defineCommand({
  name: "images",
  summary: "List images with their sizes",
  description: `
For each image: its name, its digest, its platforms, the bytes that its files have (size), what its layers brought to the
store (stored), and the part of that which came with layers that no other image has (unique). Sums of what is known of
layers, in a moment for any store; \`shale df\` looks at every file, and says what removing an image would free.
`,
  arguments: [],
  options: {
    names: { type: "flag", help: "Print names only, one a line" },
  },
  examples: [
    { command: "shale images", help: "What is there" },
    { command: "shale images --json | jq -r '.images[].digest'", help: "For a program" },
  ],
  async run(context) {
    await using store = await openStore(context);
    if (context.values.names) {
      const names = store.listImages().map(({ name }) => displayName(name));
      await emit(context, { names }, ({ names }) => names.map((name) => `${singleLine(name)}\n`).join(""));
    } else {
      await emit(context, { images: store.summarizeImages() }, ({ images }) => formatImages(images));
    }
    return undefined;
  },
});

export function formatImages(images: readonly ImageSummary[]): string {
  return formatTable(
    [
      { header: "NAME", cell: (image) => singleLine(displayName(image.name)) },
      { header: "DIGEST", cell: (image) => shortDigest(image.digest) },
      { header: "PLATFORM", cell: (image) => singleLine(image.platforms.join(",")) },
      { header: "LAYERS", cell: (image) => String(image.layers), align: "right" },
      { header: "SIZE", cell: (image) => formatBytes(image.contentBytes), align: "right" },
      { header: "STORED", cell: (image) => formatBytes(image.storedBytes), align: "right" },
      { header: "UNIQUE", cell: (image) => formatBytes(image.uniqueBytes), align: "right" },
      { header: "", cell: (image) => (image.pinned ? "pinned" : "") },
    ],
    images,
  );
}
