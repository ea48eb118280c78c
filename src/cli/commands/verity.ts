import { resolve } from "node:path";
import type { VerityInfo } from "../../export/index.ts";
import { defineCommand } from "../command.ts";
import { formatBytes } from "../format.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { exportMeter } from "./export-progress.ts";
import { VERITY } from "./verity-options.ts";

export const verity = defineCommand({
  name: "verity",
  summary: "Compute the dm-verity root hash of a file, and write its tree",
  description: `
Does what veritysetup format does, on all cores and without root: the same tree, bit for bit. Without --output or --append, only
the root hash is computed and nothing is written. --output writes superblock and tree to a file of their own, --append behind the
data in FILE itself. FILE must be whole blocks.

Unless given, salt and UUID are all zeros here: nothing is random, so that the same file has the same root hash.
`,
  arguments: [{ name: "FILE", help: "Disk image to protect", completes: "file" }],
  options: {
    output: { type: "string", short: "o", value: "FILE", completes: "file", help: "Write the tree to this file" },
    append: { type: "flag", help: "Write the tree behind the data, in FILE" },
    "block-size": { type: "number", value: "BYTES", default: 4096, minimum: 512, help: "Size of a data block" },
    "hash-block-size": { type: "number", value: "BYTES", default: 4096, minimum: 512, help: "Size of a hash block" },
    ...VERITY,
  },
  examples: [
    { command: "shale verity root.img", help: "The root hash" },
    { command: "shale verity root.img -o root.verity", help: "And the tree" },
  ],
  async run(context) {
    const { values, signal } = context;
    if (values.append && values.output !== undefined) {
      throw new UsageError("Cannot write the tree to two places", "use --output or --append");
    }
    const exports = await import("../../export/verity-file.ts");
    const path = resolve(context.positionals[0]!);
    const parameters = {
      dataBlockSize: values["block-size"],
      hashBlockSize: values["hash-block-size"],
      salt:
        values.salt === undefined ? new Uint8Array(values["no-superblock"] ? 0 : 32) : exports.parseSalt(values.salt),
      superblockUuid: values["no-superblock"]
        ? undefined
        : values.uuid === undefined
          ? new Uint8Array(16)
          : exports.parseUuid(values.uuid),
    };
    const meter = exportMeter(context.progress);
    const running = { jobs: values.jobs, signal, progress: meter };
    let info: VerityInfo;
    try {
      info = await exports.verityOfFile(path, parameters, {
        ...running,
        ...(values.append ? { append: true } : {}),
        ...(values.output === undefined ? {} : { output: resolve(values.output) }),
      });
      meter.end();
    } catch (error) {
      meter.end(true);
      throw error;
    }
    await emit(context, info, () =>
      [
        `root hash ${info.rootHash}`,
        `${info.dataBlocks} blocks of ${formatBytes(info.dataBlockSize)}, salt ${info.salt === "" ? "-" : info.salt}`,
      ].join("\n"),
    );
    return undefined;
  },
});
