import { ShaleError } from "../../errors/index.ts";
import { displayName, getImage } from "../../images/find.ts";
import { singleLine } from "../../log/index.ts";
import type { GarbageReport, Store } from "../../store/index.ts";
import { defineCommand } from "../command.ts";
import { formatDuration } from "../format.ts";
import { emit } from "../output.ts";
import { formatCollection } from "./gc.ts";
import { openStore } from "./store-access.ts";

export const rm = defineCommand({
  name: "rm",
  summary: "Remove images",
  description: `
Removes the names, in milliseconds whatever their size. Their bytes stay until \`shale gc\`, and longer where another image,
a snapshot or a mount needs them. A pinned image is refused.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", repeated: true, completes: "image" }],
  options: {
    gc: { type: "flag", help: "Collect garbage at once" },
    force: { type: "flag", short: "f", help: "Also remove what is pinned; a name that is absent is success" },
  },
  examples: [
    { command: "shale rm app:1 app:2", help: "Two names" },
    { command: "shale rm --gc app:1", help: "And free the bytes now" },
  ],
  async run(context) {
    const { values, positionals, signal } = context;
    await using store = await openStore(context);
    const startMs = performance.now();
    const removed = removeImages(store, positionals, values.force);
    const elapsedMs = performance.now() - startMs;
    let garbage: GarbageReport | undefined;
    let gcElapsedMs: number | undefined;
    if (values.gc) {
      const { collectAll } = await import("../../export/index.ts");
      const gcStartMs = performance.now();
      garbage = await collectAll(store, { signal });
      gcElapsedMs = performance.now() - gcStartMs;
    }
    const names = removed.flatMap(({ name }) => name ?? []);
    await emit(context, { removed: names, elapsedMs, garbage, gcElapsedMs }, () => {
      const lines = removed.map(({ ref, name }) => formatRemoved(ref, name)).join("");
      const took = names.length > 0 ? `removed in ${formatDuration(elapsedMs)}\n` : "";
      return lines + took + (garbage === undefined ? "" : formatCollection(garbage, gcElapsedMs ?? 0));
    });
    return undefined;
  },
});

/** Looks up every name before it removes the first one: a mistyped second name then removes nothing. */
function removeImages(
  store: Store,
  refs: readonly string[],
  force: boolean,
): { readonly ref: string; readonly name: string | undefined }[] {
  const images = refs.map((ref) => ({ ref, image: findImage(store, ref, force) }));
  const pinned = images.find(({ image }) => image?.pinned && !force)?.image;
  if (pinned !== undefined) {
    const name = displayName(pinned.name);
    throw new ShaleError("FAILED_PRECONDITION", `Cannot remove ${name}: it is pinned`, {
      hint: `Run shale unpin ${name} first, or shale rm --force`,
    });
  }
  const removed = new Set<string>();
  for (const { image } of images) {
    if (image === undefined || removed.has(image.name)) continue;
    if (image.pinned) store.setPinned(image.name, false);
    store.removeImage(image.name);
    removed.add(image.name);
  }
  return images.map(({ ref, image }) => ({ ref, name: image?.name }));
}

function findImage(store: Store, ref: string, force: boolean) {
  try {
    return getImage(store, ref);
  } catch (error) {
    if (force && ShaleError.is(error, "NOT_FOUND")) return undefined;
    throw error;
  }
}

function formatRemoved(ref: string, name: string | undefined): string {
  if (name === undefined) return `${singleLine(ref)}: was not there\n`;
  return `${singleLine(displayName(name))}: removed\n`;
}
