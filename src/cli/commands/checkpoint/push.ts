import type { PushedCheckpoint } from "../../../checkpoint/transport/index.ts";
import { singleLine } from "../../../log/index.ts";
import { defineCommand } from "../../command.ts";
import { formatBytes, shortDigest } from "../../format.ts";
import { emit } from "../../output.ts";
import { UsageError } from "../../usage.ts";
import { REGISTRY } from "../options.ts";

export const checkpointPush = defineCommand({
  name: "checkpoint push",
  summary: "Send a checkpoint to a registry as an OCI image",
  description: `
The archive becomes the one layer of an image whose annotations podman, CRI-O and containerd (so kubelets) know it by. It is
compressed on its way, in pieces; there is no temporary file. An archive that is compressed with gzip or zstd goes as it is,
and not at all when the registry has it. The image gets its name last.

What the archive does not tell (versions of engine, CRIU and kernel) can be added with --annotation.
`,
  arguments: [
    { name: "ARCHIVE", help: "Checkpoint archive", completes: "file" },
    { name: "REF", help: "Where to: host/name:tag" },
  ],
  options: {
    ...REGISTRY,
    compression: {
      type: "string",
      value: "KIND",
      choices: ["zstd", "gzip", "none"],
      default: "zstd",
      help: "How a plain archive is compressed; older engines read gzip only",
    },
    annotation: {
      type: "string",
      value: "KEY=VALUE",
      multiple: true,
      help: "Annotation of the manifest to add or change",
    },
    "mount-from": { type: "string", value: "NAME", help: "Another repository of the registry that may have the layer" },
  },
  examples: [
    { command: "shale checkpoint push web.tar registry.example/checkpoints/web:1", help: "A checkpoint of podman" },
    {
      command:
        "shale checkpoint push --compression gzip --annotation org.criu.checkpoint.criu.version=4.2 web.tar registry.example/web:1",
      help: "For an older engine, with the version of CRIU",
    },
  ],
  async run(context) {
    const { values, log, progress, signal } = context;
    const [path, name] = context.positionals as readonly [string, string];
    const { parseReference } = await import("../../../oci/index.ts");
    const reference = parseReference(name.replace(/^docker:\/\//, ""));
    if (reference.digest !== undefined) throw new UsageError("Cannot push to a digest", "name a tag");
    const annotations = parseAnnotations(values.annotation);
    const { registryAccess } = await import("../registry-access.ts");
    const { pushCheckpoint } = await import("../../../checkpoint/transport/index.ts");
    const { findFile } = await import("../../../sys/index.ts");
    await using registry = registryAccess(values, { log, hosts: () => [reference.host] });
    const task = progress.start(path, { label: "push", total: findFile(path)?.size ?? 0 });
    try {
      const pushed = await pushCheckpoint(await registry.client(), path, reference, {
        compression: values.compression,
        annotations,
        signal,
        onBytes: (count) => task.advance(count),
        ...(values["mount-from"] === undefined ? {} : { mountFrom: values["mount-from"] }),
      });
      task.done();
      await emit(context, { name, ...pushed }, () => formatPushed(name, pushed));
    } catch (error) {
      task.fail();
      throw error;
    }
    return undefined;
  },
});

export function parseAnnotations(given: readonly string[] | undefined): Record<string, string> {
  const annotations: Record<string, string> = Object.create(null);
  for (const one of given ?? []) {
    const at = one.indexOf("=");
    if (at <= 0) throw new UsageError(`Cannot read --annotation ${one}: it has no key`, "write KEY=VALUE");
    annotations[one.slice(0, at)] = one.slice(at + 1);
  }
  return annotations;
}

/** "host/name:1 (sha256:0123456789ab): 20 MB uploaded". */
export function formatPushed(name: string, { digest, layer, how }: PushedCheckpoint): string {
  const what = how === "uploaded" ? "uploaded" : how === "mounted" ? "mounted from the other repository" : "were there";
  return `${singleLine(name)} (${shortDigest(digest)}): ${formatBytes(layer.size)} ${what}\n`;
}
