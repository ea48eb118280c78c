import type { ImageTree } from "../../images/files.ts";
import type { Output } from "../output.ts";
import { withImageTree } from "./store-access.ts";
import { defineCommand } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const cat = defineCommand({
  name: "cat",
  summary: "Print files of an image, without mounting it",
  description: `
Writes the files' bytes to stdout, one after another. Each is checked against its digest as it is read; a damaged file
ends the command with an error. With --json, the bytes are in base64.
`,
  arguments: [
    { name: "REF", help: "Name or digest of an image in the store", completes: "image" },
    { name: "PATH", help: "Regular file in the image; links are followed", repeated: true, completes: "none" },
  ],
  options: {
    platform: PLATFORM,
  },
  examples: [{ command: "shale cat python:3.12 /etc/os-release", help: "One file" }],
  async run(context) {
    const { values, stdout, signal } = context;
    const [ref, ...paths] = context.positionals;
    await withImageTree(context, "cat", ref!, values.platform, async (tree) => {
      if (context.json) return await printJson(stdout, paths, tree, signal);
      for (const path of paths) {
        for (const piece of tree.read(path)) {
          await stdout.write(piece);
          signal.throwIfAborted();
        }
      }
    });
    return undefined;
  },
});

async function printJson(
  stdout: Output,
  paths: readonly string[],
  tree: ImageTree,
  signal: AbortSignal,
): Promise<void> {
  await stdout.write('{ "files": [');
  for (const [at, path] of paths.entries()) {
    await stdout.write(`${at === 0 ? "" : ","}\n  { "path": ${JSON.stringify(path)}, "base64": "`);
    let rest: Uint8Array = new Uint8Array();
    for (const piece of tree.read(path)) {
      // Base64 of pieces may be joined where each is a multiple of three bytes.
      const bytes = Buffer.concat([rest, piece]);
      const whole = bytes.length - (bytes.length % 3);
      await stdout.write(bytes.toString("base64", 0, whole));
      rest = bytes.subarray(whole);
      signal.throwIfAborted();
    }
    await stdout.write(`${Buffer.from(rest).toString("base64")}" }`);
  }
  await stdout.write("\n] }\n");
}
