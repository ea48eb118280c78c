import { defineCommand } from "../command.ts";
import { formatJson } from "../output.ts";
import { PLATFORM } from "./options.ts";
import { describePull, formatPull, type PulledImage } from "./pull.ts";
import { openStore } from "./store-access.ts";

export const load = defineCommand({
  name: "load",
  summary: "Read images from an OCI layout or an archive",
  description: `
Reads what \`shale save\`, \`docker save\`, \`podman save\` and \`skopeo copy\` write: an OCI layout (a directory, or a tar of
one) or a docker archive, also compressed with gzip or zstd. Every image in it is read, and everything is verified as in a
pull.

Images keep the names that they have there. One without a name is called by where it came from, or by its digest.
`,
  arguments: [{ name: "PATH", help: "Directory or file to read", completes: "file" }],
  options: {
    platform: PLATFORM,
    "all-platforms": { type: "flag", help: "Read every platform of a multi-platform image" },
    name: { type: "string", value: "REF", help: "Name to give to the only image, instead of its own" },
  },
  examples: [
    { command: "shale load app.tar", help: "A docker archive" },
    { command: "shale load --name app:1 ./layout", help: "An OCI layout, under another name" },
  ],
  async run(context) {
    const { values, positionals, progress, signal } = context;
    const { parsePlatform, platformOfNode } = await import("../../oci/index.ts");
    const { loadImages } = await import("../../images/load.ts");
    const platform =
      values.platform === undefined ? undefined : parsePlatform(values.platform, platformOfNode(process.arch));
    await using store = await openStore(context, { create: true });
    const images: PulledImage[] = [];
    try {
      let startMs = performance.now();
      await loadImages(store, positionals[0]!, {
        signal,
        progress,
        allPlatforms: values["all-platforms"],
        ...(platform === undefined ? {} : { platform }),
        ...(values.name === undefined ? {} : { name: values.name }),
        async onImage(result) {
          const image = describePull(result, performance.now() - startMs);
          startMs = performance.now();
          images.push(image);
          if (!context.json) await context.stdout.write(`${formatPull(image)}\n`);
        },
      });
    } finally {
      // Also what was read before one failed: it is there.
      if (context.json) await context.stdout.write(formatJson({ images }));
    }
    return undefined;
  },
});
