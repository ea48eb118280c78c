import { displayName } from "../../images/find.ts";
import type { PushResult } from "../../images/push.ts";
import { singleLine } from "../../log/index.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes, shortDigest } from "../format.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { PLATFORM, REGISTRY } from "./options.ts";
import { openStore } from "./store-access.ts";

export const push = defineCommand({
  name: "push",
  summary: "Send an image of the store to a registry",
  description: `
Sends what the registry does not have; layers are verified while they are read, compressed on their way, and the name comes last. The
image id stays. The manifest's digest changes where the layers were compressed in another way when they came.

For layers that clients can fetch in parts (zstd:chunked, eStargz), see shale convert.
`,
  arguments: [
    { name: "REF", help: "Name or digest of an image in the store", completes: "image" },
    { name: "DESTINATION", help: "Where to, as host/name:tag; the image's own name unless given", optional: true },
  ],
  options: {
    platform: { ...PLATFORM, defaultText: "every one in the store" },
    ...REGISTRY,
    compression: {
      type: "string",
      value: "KIND",
      choices: ["zstd", "none"],
      default: "zstd",
      help: "How layers travel",
    },
    "mount-from": {
      type: "string",
      value: "NAME",
      help: "Another repository of the registry that may have the layers",
    },
  },
  examples: [
    { command: "shale push registry.example/app:1", help: "Under its own name" },
    { command: "shale push --compression none app:1 localhost:5000/app:1", help: "Elsewhere, with plain layers" },
  ],
  async run(context) {
    const { values, positionals, log, progress, signal } = context;
    const [name, destination = name] = positionals as readonly [string, string | undefined];
    const { parseReference } = await import("../../oci/index.ts");
    const reference = parseReference(destination.replace(/^docker:\/\//, ""));
    if (reference.digest !== undefined) throw new UsageError("Cannot push to a digest", "name a tag");
    const { pushImage } = await import("../../images/push.ts");
    const { registryAccess } = await import("./registry-access.ts");
    const { formatTocDifference, hostsToComplete } = await import("../../images/complete.ts");
    const { getImage } = await import("../../images/find.ts");
    await using store = await openStore(context);
    const records = () => store.manifestsOf(getImage(store, name).name);
    const hosts = () => [reference.host, ...hostsToComplete(store, records())];
    await using registry = registryAccess(values, { log, hosts });
    const pushed = await pushImage(store, name, await registry.client(), reference, {
      compression: values.compression,
      onDifference: (difference) => log.warn(formatTocDifference(difference)),
      signal,
      progress,
      ...(values.platform === undefined ? {} : { platform: values.platform }),
      ...(values["mount-from"] === undefined ? {} : { mountFrom: values["mount-from"] }),
    });
    await emit(context, { destination, ...pushed }, () => formatPush(destination, pushed));
    return undefined;
  },
});

/** "host/app:1 (sha256:0123456789ab): 2 layers sent (20 MB), 3 already there". */
export function formatPush(destination: string, { digest, layers }: PushResult): string {
  const sent = layers.filter(({ how }) => how === "uploaded");
  const size = sent.reduce((sum, layer) => sum + layer.size, 0);
  const parts = [
    ...(sent.length > 0 ? [`${countOf(sent.length, "layer")} sent (${formatBytes(size)})`] : []),
    ...(sent.length < layers.length ? [`${layers.length - sent.length} already there`] : []),
  ];
  return `${singleLine(displayName(destination))} (${shortDigest(digest)}): ${parts.join(", ") || "no layers"}\n`;
}
