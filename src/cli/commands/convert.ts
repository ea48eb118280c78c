import { displayName } from "../../images/find.ts";
import type { ConvertOutput, ConvertResult } from "../../images/convert.ts";
import { singleLine } from "../../log/index.ts";
import type { RegistryClient } from "../../registry/index.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes, shortDigest } from "../format.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { PLATFORM, REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";

export const convert = defineCommand({
  name: "convert",
  summary: "Write an image in a form that can be pulled in part",
  description: `
Writes an image with a table of contents for each layer, so that whoever has some of its files or chunks already fetches
only the others. zstd:chunked is read by podman, CRI-O, buildah, skopeo and shale, and is an ordinary zstd layer to all
others; eStargz is read by containerd's stargz-snapshotter and shale, and is an ordinary gzip layer to all others.

zstd:chunked keeps the layers' tars, and so the image id. eStargz adds two files to each tar (.no.prefetch.landmark and
stargz.index.json): the image gets another id.

OUTPUT is a directory (an OCI layout, to which the image is added), oci:DIR:TAG, a file (an archive of a layout), or
docker://HOST/NAME:TAG, to which the image is pushed. Every layer is verified on the way; what failed or was killed
leaves what was there before. The same image gives the same bytes again.

A layer that has no such form (with a sparse file, a name twice or not in UTF-8) is compressed without a table of contents,
and named.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", completes: "image" }],
  options: {
    to: {
      type: "string",
      value: "FORM",
      choices: ["zstd:chunked", "estargz"],
      default: "zstd:chunked",
      help: "Form of the layers",
    },
    output: {
      type: "string",
      short: "o",
      value: "OUTPUT",
      completes: "file",
      help: "Directory, file, oci:DIR:TAG or docker://HOST/NAME:TAG to write to",
    },
    level: {
      type: "number",
      value: "N",
      minimum: 1,
      maximum: 19,
      help: "Compression level, instead of 7 (zstd, 1 to 19) or 6 (gzip, 1 to 9)",
    },
    platform: { ...PLATFORM, defaultText: "every one in the store" },
    ...REGISTRY,
  },
  examples: [
    { command: "shale convert app:1 -o ./layout/", help: "As zstd:chunked, into an OCI layout" },
    { command: "shale convert app:1 -o docker://registry.example/app:1", help: "As zstd:chunked, to a registry" },
    { command: "shale convert --to estargz app:1 -o app.oci.tar", help: "As eStargz, into an archive" },
  ],
  async run(context) {
    const { values, positionals, progress, signal, log } = context;
    if (values.output === undefined) {
      throw new UsageError("Cannot convert: --output is missing", "-o DIR/, -o FILE or -o docker://HOST/NAME:TAG");
    }
    const { registryAccess } = await import("./registry-access.ts");
    const { convertImage } = await import("../../images/convert.ts");
    const { formatTocDifference, hostsToComplete } = await import("../../images/complete.ts");
    const { getImage } = await import("../../images/find.ts");
    await using store = await openStore(context);
    const [ref] = positionals as readonly [string];
    const hosts: string[] = [];
    const sources = () => hostsToComplete(store, store.manifestsOf(getImage(store, ref).name));
    await using registry = registryAccess(values, { log, hosts: () => [...hosts, ...sources()] });
    const output = await parseOutput(values.output, registry.client);
    if (output.kind === "registry") hosts.push(output.reference.host);
    const result = await convertImage(store, ref, {
      to: values.to,
      output,
      registry: registry.client,
      onDifference: (difference) => log.warn(formatTocDifference(difference)),
      signal,
      progress,
      ...(values.level === undefined ? {} : { level: values.level }),
      ...(values.platform === undefined ? {} : { platform: values.platform }),
    });
    for (const { diffId, reason } of result.layers) {
      if (reason !== undefined)
        log.warn(`Layer ${shortDigest(diffId)} has no table of contents: ${singleLine(reason)}`);
    }
    await emit(context, { output: values.output, to: values.to, ...result }, () =>
      formatConvert(values.output!, values.to, result),
    );
    return undefined;
  },
});

/** A path that ends with a slash, or is a directory, is a layout; any other without a transport before it an archive. */
export async function parseOutput(text: string, client: () => Promise<RegistryClient>): Promise<ConvertOutput> {
  const { parseImageSource } = await import("../../oci/index.ts");
  if (/^(?:docker:\/\/|oci:)/.test(text)) {
    const source = parseImageSource(text);
    if (source.kind === "registry") return { kind: "registry", reference: source.reference, client };
    if (source.kind === "oci-layout") {
      const { directory, name } = source;
      return { kind: "layout", directory, ...(name === undefined ? {} : { tag: name }) };
    }
  }
  if (text === "-")
    throw new UsageError("Cannot convert to stdout", "an archive's blobs have their names when they are complete");
  if (text.endsWith("/")) return { kind: "layout", directory: text };
  const { findFile, realPath } = await import("../../sys/index.ts");
  const path = realPath(text);
  const isDirectory = path !== undefined && findFile(path)?.kind === "directory";
  return isDirectory ? { kind: "layout", directory: text } : { kind: "archive", path: text };
}

/** "layout/: app:1 as zstd:chunked (sha256:0123456789ab); 2 layers, 30 MB of 90 MB". */
export function formatConvert(output: string, form: string, result: ConvertResult): string {
  const sum = (pick: (layer: ConvertResult["layers"][number]) => number) =>
    result.layers.reduce((total, layer) => total + pick(layer), 0);
  const plain = result.layers.filter(({ reason }) => reason !== undefined).length;
  const without = plain === 0 ? "" : `, ${plain} without a table of contents`;
  const size = `${formatBytes(sum(({ size }) => size))} of ${formatBytes(sum(({ tarSize }) => tarSize))}`;
  const name = singleLine(displayName(result.name));
  const layers = countOf(result.layers.length, "layer");
  return `${singleLine(output)}: ${name} as ${form} (${shortDigest(result.digest)}); ${layers}${without}, ${size}\n`;
}
