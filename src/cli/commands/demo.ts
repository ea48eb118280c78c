import { displayBytes } from "../../bytes/index.ts";
import type { DemoStep } from "../../demo/index.ts";
import { displayName } from "../../images/find.ts";
import { defineCommand, EXIT } from "../command.ts";
import { countOf, formatBytes, formatDuration } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { formatJson } from "../output.ts";
import { formatUsage } from "./df.ts";
import { REGISTRY } from "./options.ts";
import { describePull, formatPull } from "./pull.ts";
import { openStore } from "./store-access.ts";

export const demo = defineCommand({
  name: "demo",
  summary: "Show what shale does, from a registry to a running program",
  description: `
Without REF: makes a real image in two versions out of this host's own files (several thousand, programs included),
serves it from a registry of its own on the loopback interface, pulls it over HTTP, mounts it, runs a program inside it,
compares every entry with its source, pulls the second version, and shows what the two share, how long each step took,
and what the store takes.

With REF: the same with that image. Mounting needs root; the other steps don't. The store is a temporary directory, removed
at the end, unless --root is given.
`,
  arguments: [{ name: "REF", help: "Image to use instead of the host's own files", optional: true }],
  options: {
    ...REGISTRY,
    keep: { type: "flag", help: "Leave the store and the mount as they are at the end, and say where" },
  },
  examples: [
    { command: "shale demo", help: "The whole way, with files of this host" },
    { command: "shale demo docker.io/library/python:3.12", help: "The same with an image of Docker Hub" },
  ],
  async run(context) {
    const { values, log, progress, signal, stdout, json } = context;
    const [ref] = context.positionals;
    const { parseImageSource } = await import("../../oci/index.ts");
    const source = ref === undefined ? undefined : parseImageSource(ref);
    const { showHostImage, showImage } = await import("../../demo/index.ts");
    const { Capability, hasCapability, makeDirectory } = await import("../../sys/index.ts");
    const { registryAccess, temporaryDirectory } = await import("./registry-access.ts");
    const steps: DemoStep[] = [];
    await using cleanup = new AsyncDisposableStack();
    const work = values.keep ? temporaryDirectory() : cleanup.use(temporaryDirectory());
    const root = context.rootGiven ? context.root : `${work.path}/store`;
    if (values.keep)
      cleanup.defer(() => log.info(`Kept: the store is ${root}, the mount and the rest are in ${work.path}`));
    const registry = cleanup.use(
      registryAccess(values, { log, hosts: () => (source?.kind === "registry" ? [source.reference.host] : []) }),
    );
    const store = cleanup.use(await openStore({ root }, { create: true }));
    const options = {
      store,
      workDirectory: work.path,
      mounts: hasCapability(Capability.SYS_ADMIN) && hasCapability(Capability.SYS_CHROOT),
      keep: values.keep,
      progress,
      signal,
      async onStep(step: DemoStep) {
        steps.push(step);
        if (!json) await stdout.write(formatStep(step, stdout.unicode));
      },
    };
    let good: boolean;
    if (source === undefined) good = await showHostImage(options, registry.client);
    else {
      const { openOrigin } = await import("../../images/origin.ts");
      const spoolDirectory = `${work.path}/spool`;
      makeDirectory(spoolDirectory);
      const origin = await openOrigin(source, { registry: registry.client, spoolDirectory, signal });
      good = await showImage(options, origin);
    }
    const usage = store.measureUsage();
    const kept = values.keep ? { root, directory: work.path } : undefined;
    if (json) await stdout.write(formatJson({ good, steps: steps.map(describeStep), usage, kept }));
    else await stdout.write(`\n${formatUsage(usage, { layers: false, output: stdout })}`);
    return good ? EXIT.ok : EXIT.failure;
  },
});

/** A step with what a program wants to know of it. */
export function describeStep(step: DemoStep): Readonly<Record<string, unknown>> {
  const elapsedMs = Math.round(step.elapsedMs * 10) / 10;
  switch (step.step) {
    case "build": {
      const images = step.images.map(({ tag, manifest, layers, tree }) => ({
        ...{ tag, digest: manifest.digest, entries: tree.size },
        layers: layers.map(({ name, size, descriptor }) => ({ name, size, compressed: descriptor.size })),
      }));
      return { ...step, elapsedMs, images };
    }
    case "pull":
      return { step: "pull", apparent: step.apparent, ...describePull(step.result, step.elapsedMs) };
    case "compare": {
      const differences = step.differences.map(({ path, what }) => ({ path: displayBytes(path), what }));
      return { ...step, elapsedMs, differences };
    }
    default:
      return Object.assign({}, step, { elapsedMs });
  }
}

const MARKS = {
  good: { unicode: "\u2713", ascii: "+" },
  skipped: { unicode: "\u2013", ascii: "-" },
  bad: { unicode: "\u2717", ascii: "x" },
} as const;

/** One line and, where there is more to say, indented ones below it. */
export function formatStep(step: DemoStep, unicode: boolean): string {
  const { mark, text, below = [] } = tellStep(step);
  const sign = unicode ? MARKS[mark].unicode : MARKS[mark].ascii;
  const time = step.step === "pull" || step.step === "no mount" ? "" : `; ${formatDuration(step.elapsedMs)}`;
  return [`${sign} ${text}${time}`, ...below.map((line) => `    ${line}`)].map((line) => `${line}\n`).join("");
}

interface Told {
  readonly mark: keyof typeof MARKS;
  readonly text: string;
  readonly below?: readonly string[];
}

function tellStep(step: DemoStep): Told {
  switch (step.step) {
    case "build": {
      const layers = new Map(step.images.flatMap((image) => image.layers.map((layer) => [layer.name, layer])));
      const size = [...layers.values()].reduce((sum, layer) => sum + layer.size, 0);
      const entries = step.images.map((image) => countOf(image.tree.size, "entry", "entries")).join(" and ");
      const what = `two versions of an image of this host: ${entries}`;
      return { mark: "good", text: `Built ${what} in ${countOf(layers.size, "layer")} of ${formatBytes(size)}` };
    }
    case "serve":
      return { mark: "good", text: `Serving them from a registry at ${step.url}` };
    case "pull": {
      const pulled = describePull(step.result, step.elapsedMs);
      const shared = `its files are ${formatBytes(step.apparent)}; new in the store are ${formatBytes(pulled.stored)}`;
      return { mark: "good", text: `Pulled ${formatPull(pulled)}`, below: [shared] };
    }
    case "mount":
      return { mark: "good", text: `Mounted it at ${step.directory}` };
    case "no mount":
      return { mark: "skipped", text: "Mounting needs root: skipped, compared through shale's own reader" };
    case "run": {
      const below = step.output === "" ? [] : step.output.split("\n").map(singleLine);
      if (step.ran) return { mark: "good", text: `Ran ${step.command} in it`, below };
      const mark = step.required ? "bad" : "skipped";
      return { mark, text: "Ran nothing in it: no program of it could be run here", below };
    }
    case "compare": {
      const { entries, files, bytes, through, different } = step;
      const how = through === "mount" ? "through the mount" : "through shale's own reader";
      const counts = `${countOf(entries, "entry", "entries")} of ${displayName(step.image)}, ${countOf(files, "file")} of ${formatBytes(bytes)} read ${how}`;
      if (different === 0) return { mark: "good", text: `Compared ${counts}: all as they should be` };
      const below = step.differences.map(({ path, what }) => `${singleLine(displayBytes(path))}: ${what.join(", ")}`);
      return { mark: "bad", text: `Compared ${counts}: ${countOf(different, "difference")}`, below };
    }
    case "diff": {
      const { added, removed, changed } = step;
      return { mark: "good", text: `Versions differ: ${added} added, ${removed} removed, ${changed} changed` };
    }
  }
}
