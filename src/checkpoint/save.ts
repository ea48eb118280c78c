/** From a running container to an archive: its engine checkpoints it, shale finds the directories and writes. */
import { basename, dirname, join, resolve } from "node:path";
import { ShaleError } from "../errors/index.ts";
import { DirectoryWriteback, makeDirectory, removeTree } from "../sys/index.ts";
import type { EngineOptions, FindContainer, RunningContainer } from "./engines/engine.ts";
import type { WriteOptions, WriteResult } from "./write.ts";

export const ENGINES = ["podman", "containerd", "runc", "crun"] as const;
export type EngineName = (typeof ENGINES)[number];

export interface SaveOptions extends Omit<WriteOptions, "output"> {
  readonly output: string;
  readonly engine: EngineName;
  /** The engine's program, by its usual name unless given. */
  readonly program?: string;
  /** Of containerd; "default" unless given. */
  readonly namespace?: string;
}

/**
 * Checkpoints a running container, which ends its processes, and writes the archive. The container is found before anything is
 * done to it. When writing fails the processes are gone, and what the engine wrote stays: with podman the container can be
 * restored in place; of the others the images are kept in a directory that the error names.
 */
export async function saveCheckpoint(name: string, options: SaveOptions): Promise<WriteResult> {
  const { engine, signal } = options;
  const settings: EngineOptions = {
    program: options.program ?? PROGRAMS[engine],
    namespace: options.namespace ?? "default",
    ...(signal && { signal }),
  };
  const find = await loadEngine(engine);
  const finding = find(name, settings);
  const writing = import("./write.ts"); // loaded while the engine's program starts
  writing.catch(() => undefined); // thrown below
  const container = await finding;
  const { writeCheckpoint } = await writing;
  const output = resolve(options.output);
  const workspace = join(dirname(output), `.${basename(output)}.${process.pid}.images`);
  makeDirectory(workspace);
  let checkpointed = false;
  try {
    const metadata = await checkpointContainer(container, workspace);
    checkpointed = metadata === workspace;
    const { upper, lower, volumes, shm } = container;
    const sources = { metadata, rootfsDiff: upper, lower, volumes, ...(shm === undefined ? {} : { shm }) };
    const result = await writeCheckpoint(sources, { ...options, output });
    checkpointed = false;
    return result;
  } catch (error) {
    if (!checkpointed) throw error;
    throw new ShaleError("FAILED_PRECONDITION", `Cannot write ${output}: ${(error as Error).message}`, {
      cause: error,
      hint: `The container has ended; its images are in ${workspace}, for shale checkpoint write --meta`,
    });
  } finally {
    if (!checkpointed) removeTree(workspace);
  }
}

/** CRIU's memory goes to the disk while it is still dumped: it has to be there before its blocks can be shared with the archive. */
async function checkpointContainer(container: RunningContainer, workspace: string): Promise<string> {
  const images = container.images?.(workspace);
  if (images === undefined) return await container.checkpoint(workspace);
  await using _ = new DirectoryWriteback(images, (name) => PAGES.test(name));
  return await container.checkpoint(workspace);
}

const PAGES = /^pages-.*\.img$/;

const PROGRAMS: Readonly<Record<EngineName, string>> = {
  ...{ podman: "podman", containerd: "ctr", runc: "runc", crun: "crun" },
};

async function loadEngine(engine: EngineName): Promise<FindContainer> {
  switch (engine) {
    case "podman":
      return (await import("./engines/podman.ts")).findPodmanContainer;
    case "containerd":
      return (await import("./engines/containerd.ts")).findContainerdContainer;
    default:
      return (await import("./engines/runtime.ts")).findRuntimeContainer;
  }
}
