import { displayName, findImage } from "../../images/find.ts";
import type { ImageConfig } from "../../oci/index.ts";
import type { ManifestRecord, Store } from "../../store/index.ts";
import { formatBytes, formatTable } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { defineCommand } from "../command.ts";
import { PLATFORM } from "./options.ts";

export const history = defineCommand({
  name: "history",
  summary: "Show the steps that built an image",
  description: `
One line for each step of the image's configuration, newest first: when it ran, what it ran, and the bytes of the layer
that it left, if any.
`,
  arguments: [{ name: "REF", help: "Name or digest of an image in the store", completes: "image" }],
  options: {
    platform: PLATFORM,
    full: { type: "flag", help: "Show commands in full instead of their beginning" },
  },
  examples: [{ command: "shale history python:3.12", help: "How it was built" }],
  async run(context) {
    const { values, positionals } = context;
    await using store = await openStore(context);
    const { image, manifest } = findImage(store, positionals[0]!, values.platform);
    const steps = listSteps(store.getConfig(manifest), manifest, store);
    await emit(context, { name: image.name, digest: manifest.digest, history: steps }, ({ name, history }) =>
      history.length === 0
        ? `${singleLine(displayName(name))} has no history\n`
        : formatHistory(history, { full: values.full }),
    );
    return undefined;
  },
});

export interface Step {
  readonly created: string | undefined;
  readonly createdBy: string | undefined;
  readonly comment: string | undefined;
  /** Of the layer that the step left; absent where it left none. */
  readonly layer: { readonly diffId: string; readonly digest: string } | undefined;
  /** File bytes of that layer; undefined where it isn't in the store. */
  readonly size: number | undefined;
}

/** Newest first. Layers that the history doesn't name (some builders write none for a base) come as steps without a text. */
export function listSteps(config: ImageConfig, manifest: ManifestRecord, store: Pick<Store, "findLayer">): Step[] {
  const layers = [...manifest.layers];
  const next = () => {
    const layer = layers.shift();
    if (layer === undefined) return { layer: undefined, size: undefined };
    const { diffId, digest } = layer;
    return { layer: { diffId, digest }, size: store.findLayer(diffId)?.contentBytes };
  };
  const unnamed = layers.length - config.history.filter((entry) => !entry.emptyLayer).length;
  const steps: Step[] = [];
  for (let at = 0; at < unnamed; at++) {
    steps.push({ created: undefined, createdBy: undefined, comment: undefined, ...next() });
  }
  for (const { created, createdBy, comment, emptyLayer } of config.history) {
    const left = emptyLayer ? { layer: undefined, size: 0 } : next();
    steps.push({ created, createdBy, comment, ...left });
  }
  return steps.reverse();
}

/** Characters of a command that are shown unless --full. */
const COMMAND_WIDTH = 60;

export function formatHistory(steps: readonly Step[], options: { readonly full: boolean }): string {
  const shorten = (text: string) =>
    options.full || text.length <= COMMAND_WIDTH ? text : `${text.slice(0, COMMAND_WIDTH - 3)}...`;
  return formatTable(
    [
      { header: "CREATED", cell: (step) => singleLine(step.created?.slice(0, 19).replace("T", " ") ?? "-") },
      { header: "SIZE", cell: (step) => (step.size === undefined ? "?" : formatBytes(step.size)), align: "right" },
      { header: "CREATED BY", cell: (step) => shorten(oneLine(step.createdBy ?? "")) },
      { header: "COMMENT", cell: (step) => oneLine(step.comment ?? "") },
    ],
    steps,
  );
}

/** Commands hold tabs and line ends of a Dockerfile; one space each reads as well. */
function oneLine(text: string): string {
  return singleLine(text.replace(/\s+/g, " ").trim());
}
