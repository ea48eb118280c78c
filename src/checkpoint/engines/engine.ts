/** What shale asks of the engine that a container runs in. */
import { ShaleError } from "../../errors/index.ts";
import { closeFile, createFile, run, writeAt } from "../../sys/index.ts";

export interface RunningContainer {
  readonly id: string;
  /** Of its overlay: upper directory, and lower directories, uppermost first. */
  readonly upper: string;
  readonly lower: readonly string[];
  readonly volumes: readonly { readonly name: string; readonly directory: string }[];
  /** Its /dev/shm where that is a mount of the host that outlives the processes. */
  readonly shm?: string;
  /** Where CRIU's images will be, if the engine lets that be known. */
  images?(workspace: string): string;
  /**
   * Checkpoints the container, which ends its processes, and answers where metadata and CRIU's images are. `workspace` is
   * an empty private directory on the file system of the archive, for what the engine has no place for.
   */
  checkpoint(workspace: string): Promise<string>;
}

export interface EngineOptions {
  /** The engine's program: a name in $PATH, or a path. */
  readonly program: string;
  /** Of containerd. */
  readonly namespace: string;
  readonly signal?: AbortSignal;
}

/** Finds a running container. NOT_FOUND; FAILED_PRECONDITION when it does not run, or its root is no overlay. */
export type FindContainer = (name: string, options: EngineOptions) => Promise<RunningContainer>;

/** Runs the engine's program; what it says becomes the error. */
export async function ask(
  act: string,
  program: string,
  args: readonly string[],
  signal: AbortSignal | undefined,
): Promise<string> {
  const { code, stdout, stderr } = await run(program, args, signal === undefined ? {} : { signal });
  if (code === 0) return stdout.toString();
  const said = stderr.toString().trim().split("\n").slice(-5).join("; ");
  const missing = /no such (container|object)|not found|does not exist/i.test(said);
  throw new ShaleError(
    missing ? "NOT_FOUND" : "FAILED_PRECONDITION",
    `Cannot ${act}: ${said || `${program} ended with ${code}`}`,
  );
}

export type Json = Readonly<Record<string, unknown>>;

export function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** JSON of an engine, as an object; the first of a list. */
export function parseAnswer(text: string, program: string): Json {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new ShaleError("INTERNAL", `Cannot read the answer of ${program}: it is no JSON`, { cause });
  }
  const first: unknown = Array.isArray(value) ? value[0] : value;
  if (!isObject(first))
    throw new ShaleError("NOT_FOUND", `Cannot find the container: ${program} knows none of that name`);
  return first;
}

export function textOf(value: unknown, what: string, program: string): string {
  if (typeof value === "string" && value !== "") return value;
  throw new ShaleError("FAILED_PRECONDITION", `Cannot read ${what} of the container: ${program} does not tell it`);
}

/** Directories of an overlay from mount options, as mount(8) and mountinfo have them. */
export function overlayDirectories(
  options: readonly string[],
  what: string,
): { readonly upper: string; readonly lower: readonly string[] } {
  let upper: string | undefined;
  const lower: string[] = [];
  for (const option of options) {
    if (option.startsWith("upperdir=")) upper = option.slice("upperdir=".length);
    else if (option.startsWith("lowerdir=")) lower.push(...option.slice("lowerdir=".length).split(":"));
    else if (option.startsWith("lowerdir+=")) lower.push(option.slice("lowerdir+=".length));
  }
  if (upper !== undefined && lower.length > 0) return { upper, lower };
  throw new ShaleError(
    "FAILED_PRECONDITION",
    `Cannot checkpoint ${what}: its root file system is no overlay with an upper directory`,
    {
      hint: "Name the directories yourself, with shale checkpoint write",
    },
  );
}

/** A new file, for its owner alone. */
export function writeDocument(path: string, bytes: Uint8Array): void {
  const fd = createFile(path);
  try {
    writeAt(fd, bytes, 0);
  } finally {
    closeFile(fd);
  }
}
