import { resolve } from "node:path";
import { defineCommand } from "../command.ts";
import { countOf } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { exportMeter } from "./export-progress.ts";
import { VERITY } from "./verity-options.ts";

export const verify = defineCommand({
  name: "verify",
  summary: "Check a file against its dm-verity tree and a root hash",
  description: `
Reads all of FILE and checks it as the kernel would on reading it: data against the tree, the tree against the root hash that you
give, which must come from where you trust it. Needs no root and no device-mapper. Fails with the first place that is wrong.

Where the tree is, and how it was made, comes from FILE.json if shale exported FILE; otherwise from the options, and from
the superblock at --hash-offset.
`,
  arguments: [{ name: "FILE", help: "Disk image to check", completes: "file" }],
  options: {
    "root-hash": { type: "string", value: "HEX", completes: "none", help: "The trusted root hash (required)" },
    "hash-file": {
      type: "string",
      value: "FILE",
      completes: "file",
      help: "File that has the tree, if it is not FILE",
    },
    "hash-offset": { type: "number", value: "BYTES", minimum: 0, help: "Where superblock or tree begin in it" },
    "data-blocks": { type: "number", value: "N", minimum: 1, help: "Number of data blocks (with --no-superblock)" },
    "block-size": { type: "number", value: "BYTES", minimum: 512, help: "Size of a data block (with --no-superblock)" },
    "hash-block-size": {
      type: "number",
      value: "BYTES",
      minimum: 512,
      help: "Size of a hash block (with --no-superblock)",
    },
    salt: VERITY.salt,
    "no-superblock": { type: "flag", help: "The tree has no superblock: the options say what it would" },
    jobs: VERITY.jobs,
  },
  examples: [
    { command: "shale verify python.erofs --root-hash 9e6f0a23...", help: "What shale export made" },
    { command: "shale verify root.img --hash-file root.verity --root-hash 1030a4bc...", help: "What veritysetup made" },
  ],
  async run(context) {
    const { values, signal } = context;
    const exports = await import("../../export/verity-file.ts");
    const path = resolve(context.positionals[0]!);
    const meter = exportMeter(context.progress);
    try {
      const checked = await exports.verifyFile(
        path,
        {
          rootHash: values["root-hash"],
          hashFile: values["hash-file"] === undefined ? undefined : resolve(values["hash-file"]),
          hashOffset: values["hash-offset"],
          dataBlocks: values["data-blocks"],
          dataBlockSize: values["block-size"],
          hashBlockSize: values["hash-block-size"],
          salt: values.salt,
          superblock: values["no-superblock"] ? false : undefined,
        },
        { jobs: values.jobs, signal, progress: meter },
      );
      meter.end();
      await emit(context, { path, ...checked, verified: true }, () => {
        return `${singleLine(path)}: ${countOf(checked.dataBlocks, "block")} match the root hash`;
      });
    } catch (error) {
      meter.end(true);
      throw error;
    }
    return undefined;
  },
});
