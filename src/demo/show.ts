/** The steps of `shale demo`, each reported as soon as it has ended. What they print is the command line's business. */
import { join } from "node:path";
import { displayBytes } from "../bytes/index.ts";
import { type Difference, diffTrees } from "../images/diff.ts";
import { openImageTree } from "../images/files.ts";
import { findImage, type FoundImage } from "../images/find.ts";
import { mountImage, unmountImage } from "../images/mount.ts";
import { type Origin, openOrigin } from "../images/origin.ts";
import type { Progress } from "../images/progress.ts";
import { type PullResult, pullImage } from "../images/pull.ts";
import { parseImageSource } from "../oci/index.ts";
import type { RegistryClient } from "../registry/index.ts";
import { layoutProvider, startRegistry } from "../server/index.ts";
import type { Store } from "../store/index.ts";
import { ensureDirectory, run, which } from "../sys/index.ts";
import { buildDemoImage, type DemoImage } from "./build.ts";
import {
  builtFacts,
  type Comparison,
  compareFiles,
  type FileFacts,
  mountedFiles,
  storedFacts,
  storedFiles,
  walkable,
} from "./compare.ts";
import type { DemoSize } from "./plan.ts";

export type DemoStep = { readonly elapsedMs: number } & (
  | { readonly step: "build"; readonly images: readonly DemoImage[]; readonly skipped: number }
  | { readonly step: "serve"; readonly url: string }
  | { readonly step: "pull"; readonly result: PullResult; readonly apparent: number }
  | { readonly step: "mount"; readonly directory: string }
  /** Mounting and running a program were left out: this process may not. */
  | { readonly step: "no mount" }
  | {
      readonly step: "run";
      readonly required: boolean;
      readonly command: string;
      readonly ran: boolean;
      readonly output: string;
    }
  | ({ readonly step: "compare"; readonly image: string; readonly through: "mount" | "reader" } & Comparison)
  | { readonly step: "diff"; readonly added: number; readonly removed: number; readonly changed: number }
);

type WithoutTime<T> = T extends unknown ? Omit<T, "elapsedMs"> : never;

export interface DemoOptions {
  readonly store: Store;
  /** An empty directory for the layout and the mount; what is left in it is the caller's to remove. */
  readonly workDirectory: string;
  /** Whether this process may mount and chroot. */
  readonly mounts: boolean;
  /** Leave the mount at the end. */
  readonly keep?: boolean;
  readonly size?: DemoSize;
  readonly progress: Progress;
  readonly signal: AbortSignal;
  readonly onStep: (step: DemoStep) => Promise<void>;
}

/** Names in the store; the registry's port changes from run to run and would make a new image of each. */
const NAMES = { v1: "localhost/shale-demo:v1", v2: "localhost/shale-demo:v2" } as const;
const REPOSITORY = "shale-demo";
/** An image's program that hangs must not hang the demo. */
const PROGRAM_TIMEOUT_MS = 30_000;
const MAX_PROGRAM_OUTPUT = 64 * 1024;
/** Foreign programs get no user of the host and no root. */
const NOBODY = "65534:65534";

/**
 * The whole way with files of this host. Resolves to whether everything was as it should be; the mount is gone when this
 * settles, unless `keep`.
 */
export async function showHostImage(options: DemoOptions, client: () => Promise<RegistryClient>): Promise<boolean> {
  const { store, workDirectory, signal } = options;
  const step = stepper(options);
  const layout = join(workDirectory, "layout");
  const built = await step(async () => {
    const task = options.progress.start("build", { label: "image of this host" });
    let reported = 0;
    const images = await buildDemoImage({
      targetLayoutDir: layout,
      signal,
      ...(options.size === undefined ? {} : { size: options.size }),
      progress(done) {
        task.advance(done - reported);
        reported = done;
      },
    }).catch((error: unknown) => {
      task.fail();
      throw error;
    });
    task.done();
    return { value: images, report: { step: "build", images: [images.v1, images.v2], skipped: images.skipped } };
  });
  await using registry = await step(async () => {
    const value = await startRegistry(layoutProvider(layout, REPOSITORY), { signal });
    return { value, report: { step: "serve", url: value.url } };
  });
  const originOf = (tag: string) =>
    openOrigin(parseImageSource(`${registry.host}:${registry.port}/${REPOSITORY}:${tag}`), {
      registry: client,
      signal,
    });
  const first = await pull(options, await originOf("v1"), NAMES.v1);
  const v1Good = await inspect(options, first, builtFacts(built.v1.tree), [["/app/hello"]], { mustRun: true });
  const second = await pull(options, await originOf("v2"), NAMES.v2);
  await step(async () => {
    using operation = store.begin("demo diff");
    using before = openImageTree(operation, first.manifest);
    using after = openImageTree(operation, second.manifest);
    const count = { added: 0, removed: 0, changed: 0 } satisfies Record<Difference["kind"], number>;
    for (const { kind } of diffTrees(before.tree, after.tree)) count[kind]++;
    return { value: undefined, report: { step: "diff", ...count } };
  });
  const v2Good = await compareStored(options, second, () => builtFacts(built.v2.tree));
  return v1Good && v2Good;
}

/** The same with an image from elsewhere; it is compared with the digests under which its contents were stored. */
export async function showImage(options: DemoOptions, origin: Origin): Promise<boolean> {
  const found = await pull(options, origin, origin.name);
  return await inspect(options, found, undefined, [
    ["/bin/sh", "-c", "echo hello from inside the image"],
    ["/bin/true"],
  ]);
}

async function pull(options: DemoOptions, origin: Origin, name: string): Promise<FoundImage> {
  const { store, signal, progress } = options;
  return await stepper(options)(async () => {
    const result = await pullImage(store, origin, { name, signal, progress });
    const apparent = store.measureUsage().images.find((image) => image.name === result.name)?.apparent ?? 0;
    return { value: findImage(store, result.name), report: { step: "pull", result, apparent } };
  });
}

/** Mounts, runs, compares, unmounts; without the right to mount only compares, through our own reader. */
async function inspect(
  options: DemoOptions,
  found: FoundImage,
  expected: ReadonlyMap<string, FileFacts> | undefined,
  commands: readonly (readonly string[])[],
  { mustRun = false } = {},
): Promise<boolean> {
  const { store, signal } = options;
  const step = stepper(options);
  const { name } = found.image;
  const facts = () => {
    if (expected !== undefined) return expected;
    using operation = store.begin(`demo ${name}`);
    using tree = openImageTree(operation, found.manifest);
    return storedFacts(walkable(tree));
  };
  if (!options.mounts) {
    await step(async () => ({ value: undefined, report: { step: "no mount" } }));
    return await compareStored(options, found, facts);
  }
  const directory = join(options.workDirectory, "mnt");
  ensureDirectory(directory, 0o755);
  await using cleanup = new AsyncDisposableStack();
  await step(async () => {
    await mountImage(store, found, directory, { signal });
    // Without the signal: it is aborted when this is needed most.
    if (!options.keep) cleanup.defer(async () => void (await unmountImage(store, directory)));
    return { value: undefined, report: { step: "mount", directory } };
  });
  const ran = await step(async () => {
    const value = await runInside(directory, commands, signal);
    return { value: value.ran, report: { step: "run", required: mustRun, ...value } };
  });
  const { different } = await step(async () => {
    const value = await compareFiles(facts(), mountedFiles(directory), { signal });
    return { value, report: { step: "compare", image: name, through: "mount", ...value } };
  });
  return different === 0 && (ran || !mustRun);
}

async function compareStored(
  options: DemoOptions,
  { image, manifest }: FoundImage,
  facts: () => ReadonlyMap<string, FileFacts>,
): Promise<boolean> {
  const { store, signal } = options;
  return await stepper(options)(async () => {
    using operation = store.begin(`demo ${image.name}`);
    using tree = openImageTree(operation, manifest);
    const value = await compareFiles(facts(), storedFiles(walkable(tree)), { signal });
    return {
      value: value.different === 0,
      report: { step: "compare", image: image.name, through: "reader", ...value },
    };
  });
}

/** The first command that ends well. An image need not have any of them: then what the last one said is the answer. */
async function runInside(
  directory: string,
  commands: readonly (readonly string[])[],
  signal: AbortSignal,
): Promise<{ readonly command: string; readonly ran: boolean; readonly output: string }> {
  const chroot = which("chroot") ?? "/usr/sbin/chroot"; // not every user's PATH has it
  let last = { command: "", ran: false, output: "" };
  for (const command of commands) {
    const ended = await run(chroot, [`--userspec=${NOBODY}`, "--groups=", directory, ...command], {
      signal,
      timeoutMs: PROGRAM_TIMEOUT_MS,
      maxOutput: MAX_PROGRAM_OUTPUT,
      env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
    });
    const ran = ended.code === 0;
    const bytes = ran ? ended.stdout : ended.stderr;
    last = { command: command.join(" "), ran, output: displayBytes(bytes.toString("latin1").trim()) };
    if (ran) break;
  }
  return last;
}

/** Times a step and reports it; one that fails is the error's to tell. */
function stepper({ onStep }: DemoOptions) {
  return async <T>(act: () => Promise<{ readonly value: T; readonly report: WithoutTime<DemoStep> }>): Promise<T> => {
    const startMs = performance.now();
    const { value, report } = await act();
    await onStep({ ...report, elapsedMs: performance.now() - startMs } as DemoStep);
    return value;
  };
}
