import { ShaleError } from "../../errors/index.ts";
import { displayName, getImage } from "../../images/find.ts";
import { singleLine } from "../../log/index.ts";
import type { GarbageReport, Store } from "../../store/index.ts";
import { defineCommand } from "../command.ts";
import { countOf, formatBytes, formatDuration } from "../format.ts";
import { emit } from "../output.ts";
import { formatCollection } from "./gc.ts";
import { openStore } from "./store-access.ts";

export const rm = defineCommand({
  name: "rm",
  summary: "Remove images",
  description: `
Removes the names, in milliseconds whatever their size. Their bytes stay until \`shale gc\`, and longer where another image,
a snapshot or a mount needs them; so do disks of them in the cache of exports, and it is said how many. A pinned image is refused.
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
    const exports = await unusedExports(store, new Set(removed.flatMap(({ manifests }) => manifests)));
    let garbage: GarbageReport | undefined;
    let gcElapsedMs: number | undefined;
    if (values.gc) {
      const { collectAll } = await import("../../export/index.ts");
      const gcStartMs = performance.now();
      garbage = await collectAll(store, { signal });
      gcElapsedMs = performance.now() - gcStartMs;
    }
    const names = removed.flatMap(({ name }) => name ?? []);
    await emit(context, { removed: names, elapsedMs, exports, garbage, gcElapsedMs }, () => {
      const lines = removed.map(({ ref, name }) => formatRemoved(ref, name)).join("");
      const took = names.length > 0 ? `removed in ${formatDuration(elapsedMs)}\n` : "";
      return (
        lines + took + (garbage === undefined ? formatUnused(exports) : formatCollection(garbage, gcElapsedMs ?? 0))
      );
    });
    return undefined;
  },
});

/** Looks up every name before it removes the first one: a mistyped second name then removes nothing. */
function removeImages(
  store: Store,
  refs: readonly string[],
  force: boolean,
): {
  readonly ref: string;
  readonly name: string | undefined;
  readonly manifests: readonly string[];
}[] {
  const images = refs.map((ref) => ({ ref, image: findImage(store, ref, force) }));
  const pinned = images.find(({ image }) => image?.pinned && !force)?.image;
  if (pinned !== undefined) {
    const name = displayName(pinned.name);
    throw new ShaleError("FAILED_PRECONDITION", `Cannot remove ${name}: it is pinned`, {
      hint: `Run shale unpin ${name} first, or shale rm --force`,
    });
  }
  const manifests = new Map(
    images.map(({ ref, image }) => [
      ref,
      image === undefined ? [] : store.manifestsOf(image.name).map(({ digest }) => String(digest)),
    ]),
  );
  const removed = new Set<string>();
  for (const { image } of images) {
    if (image === undefined || removed.has(image.name)) continue;
    if (image.pinned) store.setPinned(image.name, false);
    store.removeImage(image.name);
    removed.add(image.name);
  }
  return images.map(({ ref, image }) => ({ ref, name: image?.name, manifests: manifests.get(ref)! }));
}

/** Of the cached exports of these manifests: those that no other image needs. */
async function unusedExports(
  store: Store,
  manifests: ReadonlySet<string>,
): Promise<{ readonly id: string; readonly size: number }[]> {
  if (manifests.size === 0) return [];
  const { isNeeded, listExports } = await import("../../export/entries.ts"); // not all of the module: it makes no exports
  return listExports(store)
    .filter((entry) => manifests.has(entry.manifest) && !isNeeded(store, entry))
    .map(({ id, allocated }) => ({ id, size: allocated }));
}

function formatUnused(exports: readonly { readonly size: number }[]): string {
  if (exports.length === 0) return "";
  const size = formatBytes(exports.reduce((sum, one) => sum + one.size, 0));
  return `${countOf(exports.length, "cached export")} (${size}) of what was removed: shale gc frees ${exports.length === 1 ? "it" : "them"}\n`;
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
