/** Writes contrib/containerd/; `npm run docs`. */
import { fileURLToPath } from "node:url";
import { closeFile, createFile, unlink, writeAt } from "../../sys/index.ts";
import { contribFiles } from "./contrib.ts";

for (const [name, text] of contribFiles()) {
  const path = fileURLToPath(new URL(`../../../contrib/containerd/${name}`, import.meta.url));
  unlink(path);
  const file = createFile(path, 0o644);
  writeAt(file, Buffer.from(text), 0);
  closeFile(file);
}
