import { displayName, getImage } from "../../images/find.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { defineCommand } from "../command.ts";

export const unpin = defineCommand({
  name: "unpin",
  summary: "Let pinned images be removed again",
  description: `
Undoes \`shale pin\`. Unpinning what isn't pinned is success.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", repeated: true, completes: "image" }],
  options: {},
  examples: [{ command: "shale unpin registry.example/pause:3.9", help: "Let it go" }],
  async run(context) {
    await using store = await openStore(context);
    const names = context.positionals.map((ref) => getImage(store, ref).name);
    for (const name of names) store.setPinned(name, false);
    const images = names.map((name) => ({ name, pinned: false }));
    await emit(context, { images }, () =>
      names.map((name) => `${singleLine(displayName(name))}: not pinned\n`).join(""),
    );
    return undefined;
  },
});
