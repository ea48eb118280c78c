import { type ByteString, bytesOf, displayBytes, fromUtf8 } from "../../bytes/index.ts";
import type { ImageFile, ImageTree } from "../../images/files.ts";
import type { Output } from "../output.ts";
import { describeFile, LongFormat, type LongLine } from "./image-file.ts";
import { withImageTree } from "./store-access.ts";
import { defineCommand } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const ls = defineCommand({
  name: "ls",
  summary: "List files of an image, without mounting it",
  description: `
Reads the image's own index: needs no root and no mount. PATH is taken inside the image, "/" if absent; links in it are
followed inside the image. With -l, lines are those of \`ls -ln --time-style=long-iso\`, times in UTC. Names are bytes: where
stdout is a terminal, control characters and bytes that are not UTF-8 are escaped in hexadecimal; otherwise names are
printed as they are. --json escapes them and adds the bytes in base64.
`,
  arguments: [
    { name: "REF", help: "Name or digest of an image in the store", completes: "image" },
    { name: "PATH", help: "File or directory in the image", optional: true, repeated: true, completes: "none" },
  ],
  options: {
    platform: PLATFORM,
    long: { type: "flag", short: "l", help: "Show mode, owner, size and time" },
    recursive: { type: "flag", short: "R", help: "Go down into directories" },
  },
  examples: [
    { command: "shale ls python:3.12 /usr/bin", help: "A directory" },
    { command: "shale ls -lR python:3.12 /etc", help: "A tree with its details" },
  ],
  async run(context) {
    const { values, stdout, signal } = context;
    const [ref, ...given] = context.positionals;
    const paths = given.length === 0 ? ["/"] : given;
    const { recursive } = values;
    await withImageTree(context, "ls", ref!, values.platform, async (tree) => {
      // Every path first: nothing is printed when one of them is absent.
      for (const path of paths) tree.get(path, { followSymlinks: true });
      if (context.json) return await printJson(stdout, paths, tree, recursive, signal);
      for (const [at, path] of paths.entries()) {
        if (paths.length > 1) await stdout.write(`${at === 0 ? "" : "\n"}${displayBytes(fromUtf8(path))}:\n`);
        await printPath(stdout, path, tree, { recursive, long: values.long, signal });
      }
    });
    return undefined;
  },
});

/** Lines that are formatted and written at a time. */
const BATCH = 1000;

async function printPath(
  stdout: Output,
  path: string,
  tree: ImageTree,
  options: { readonly recursive: boolean; readonly long: boolean; readonly signal: AbortSignal },
): Promise<void> {
  // Names are bytes. A terminal gets them escaped; a program gets them as they are, one a line.
  const show = (name: ByteString) => (stdout.columns === undefined ? name : fromUtf8(displayBytes(name)));
  const long = new LongFormat();
  const print = async (lines: readonly LongLine[]) => {
    const text = options.long ? long.format(lines, show) : lines.map(({ name }) => `${show(name)}\n`).join("");
    if (text !== "") await stdout.write(bytesOf(text));
  };
  const directory = tree.get(path, { followSymlinks: true }).path;
  const lines: LongLine[] = [];
  for (const file of tree.list(path, options)) {
    lines.push({ file, name: nameBelow(directory, file) });
    if (lines.length < BATCH) continue;
    await print(lines.splice(0));
    options.signal.throwIfAborted();
  }
  await print(lines);
}

/** What is left of a path below the listed directory; the whole path of a listed file. */
function nameBelow(directory: ByteString, { path }: ImageFile): ByteString {
  if (path === directory) return path;
  return path.slice(directory === "/" ? 1 : directory.length + 1);
}

/** One value, written as it is found: a tree may have a million files. */
async function printJson(
  stdout: Output,
  paths: readonly string[],
  tree: ImageTree,
  recursive: boolean,
  signal: AbortSignal,
): Promise<void> {
  let separator = "\n";
  await stdout.write('{ "files": [');
  for (const path of paths) {
    let batch = "";
    let count = 0;
    for (const file of tree.list(path, { recursive })) {
      batch += `${separator}  ${JSON.stringify(describeFile(file))}`;
      separator = ",\n";
      if (++count % BATCH !== 0) continue;
      await stdout.write(batch);
      batch = "";
      signal.throwIfAborted();
    }
    if (batch !== "") await stdout.write(batch);
  }
  await stdout.write("\n] }\n");
}
