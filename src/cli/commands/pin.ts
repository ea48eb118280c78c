import { displayName, getImage } from "../../images/find.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { defineCommand } from "../command.ts";

export const pin = defineCommand({
  name: "pin",
  summary: "Keep images from being removed",
  description: `
A pinned image is refused by \`shale rm\` and left alone by every cleaning policy, until it is unpinned. Pinning what is
pinned is success.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", repeated: true, completes: "image" }],
  options: {},
  examples: [{ command: "shale pin registry.example/pause:3.9", help: "Keep it" }],
  async run(context) {
    await using store = await openStore(context);
    const names = context.positionals.map((ref) => getImage(store, ref).name);
    for (const name of names) store.setPinned(name, true);
    const images = names.map((name) => ({ name, pinned: true }));
    await emit(context, { images }, () => names.map((name) => `${singleLine(displayName(name))}: pinned\n`).join(""));
    return undefined;
  },
});
