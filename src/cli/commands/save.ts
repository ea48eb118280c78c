import { displayName } from "../../images/find.ts";
import type { SaveResult } from "../../images/save.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { PLATFORM, REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";

export const save = defineCommand({
  name: "save",
  summary: "Write images to an OCI layout or an archive",
  description: `
Writes each image with its layer tars bit for bit as they were when they were built (equal diffIDs). A directory becomes an
OCI layout, to which images are added if it exists; a file becomes a docker archive. An OCI layout gets every platform
that the store has of an image, a docker archive one.

Every layer is verified while it is written. The file gets its name, and the layout its entry, when everything is there and
durable: a command that failed or was killed leaves what was there before.

The image ids stay. Digests of manifests change where the layers were compressed when they came: an OCI layout gets them as
plain tars, or compressed anew with --compression zstd.

Where a layer was pulled in parts and is verified by its table of contents (eStargz, see shale inspect), what its tar has
beside is fetched first, from the registry that it came from.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", repeated: true, completes: "image" }],
  options: {
    platform: {
      ...PLATFORM,
      defaultText: "every one in the store for an OCI layout, this machine's for a docker archive",
    },
    output: {
      type: "string",
      short: "o",
      value: "PATH",
      completes: "file",
      help: "Directory or file to write, or - for stdout",
    },
    format: {
      type: "string",
      value: "FORMAT",
      choices: ["oci", "docker"],
      help: "Form to write, instead of oci for a directory and docker for a file",
    },
    compression: {
      type: "string",
      value: "KIND",
      choices: ["none", "zstd"],
      default: "none",
      help: "How the layers of an OCI layout are compressed",
    },
    ...REGISTRY,
  },
  examples: [
    { command: "shale save app:1 -o ./layout/", help: "Into an OCI layout" },
    { command: "shale save --compression zstd app:1 app:2 -o ./layout/", help: "Two images, with compressed layers" },
    { command: "shale save app:1 -o app.tar", help: "As a docker archive" },
    { command: "shale save app:1 -o - | ssh host docker load", help: "To another machine" },
  ],
  async run(context) {
    const { values, positionals, progress, signal, stdout } = context;
    const { output } = values;
    if (output === undefined) throw new UsageError("Cannot save: --output is missing", "-o DIR/, -o FILE or -o -");
    const toStdout = output === "-";
    if (toStdout && stdout.columns !== undefined) {
      throw new UsageError("Cannot save: stdout is a terminal", "redirect it, or name a file with -o");
    }
    const { saveImages } = await import("../../images/save.ts");
    const { getImage } = await import("../../images/find.ts");
    const { formatTocDifference, hostsToComplete } = await import("../../images/complete.ts");
    const { registryAccess } = await import("./registry-access.ts");
    await using store = await openStore(context);
    const hosts = () =>
      positionals.flatMap((ref) => hostsToComplete(store, store.manifestsOf(getImage(store, ref).name)));
    await using registry = registryAccess(values, { log: context.log, hosts });
    const result = await saveImages(store, positionals, {
      registry: registry.client,
      onDifference: (difference) => context.log.warn(formatTocDifference(difference)),
      output: toStdout ? (bytes) => stdout.write(bytes) : output,
      compression: values.compression,
      signal,
      progress,
      ...(values.format === undefined ? {} : { format: values.format }),
      ...(values.platform === undefined ? {} : { platform: values.platform }),
    });
    if (!toStdout) await emit(context, { output, ...result }, () => formatSave(output, result));
    return undefined;
  },
});

/** "layout: app:1 as an OCI layout; 3 layers written (20 MB), 1 layer already there". */
export function formatSave(output: string, result: SaveResult): string {
  const names = result.images.map(({ name }) => singleLine(displayName(name))).join(", ");
  const form = result.format === "oci" ? "an OCI layout" : "a docker archive";
  const there = result.layersPresent === 0 ? "" : `, ${countOf(result.layersPresent, "layer")} already there`;
  const written = `${countOf(result.layersWritten, "layer")} written (${formatBytes(result.size)})`;
  return `${singleLine(output)}: ${names} as ${form}; ${written}${there}\n`;
}
