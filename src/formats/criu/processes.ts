/** The process tree of a checkpoint, put together from its images as they come by, in any order. */
import { type ByteString, byteString } from "../../bytes/index.ts";
import { decodeImage, decodeSingle } from "./images.ts";
import { LIMITS } from "./limits.ts";
import { CORE, FILE, INVENTORY, MACHINES, MM, PSTREE, TASK_STATES, UTSNS } from "./messages.ts";
import { decodePagemap, locateMemory, PAGE_SIZE, type Pagemap } from "./pagemap.ts";

export interface Process {
  /** In its own pid namespace; the root's is 1 as a rule. */
  readonly pid: number;
  /** 0 for the root. */
  readonly ppid: number;
  readonly threads: number;
  /** The kernel's name of it, at most 15 bytes. Undefined where the image is missing. */
  readonly comm: ByteString | undefined;
  /** Path of the program in the container. */
  readonly executable: ByteString | undefined;
  readonly uid: number | undefined;
  readonly gid: number | undefined;
  /** "alive", "stopped", "zombie", "dead"; the number where it is another. */
  readonly state: string | undefined;
  /** Bytes of memory that this checkpoint has of it. */
  readonly memory: number;
  /** Bytes that are in the checkpoint before this one. */
  readonly memoryInParent: number;
  /** Its command line; undefined where its memory was not seen. A program may have written anything there. */
  readonly arguments: readonly ByteString[] | undefined;
  readonly pagemap: Pagemap | undefined;
}

export interface ProcessTree {
  /** Parents before their children, siblings by pid. */
  readonly processes: readonly Process[];
  /** As GOARCH has it; undefined where no core image was seen, or of no machine that we know. */
  readonly architecture: string | undefined;
  readonly hostname: ByteString | undefined;
  /** Version of the image format: 1 or 2. */
  readonly imageVersion: number | undefined;
}

/** Bytes of a command line that are kept. */
const MAX_ARGUMENTS = 4096;

const NUMBERED = /^(core|mm|pagemap)-(\d{1,10})\.img$/;

export class ProcessTreeReader {
  readonly #cores = new Map<number, ReturnType<typeof CORE.decode>>();
  readonly #memory = new Map<number, ReturnType<typeof MM.decode>>();
  readonly #pagemaps = new Map<number, Pagemap>();
  readonly #arguments = new Map<number, readonly ByteString[]>();
  readonly #files = new Map<number, ByteString>();
  #entries: ReturnType<typeof PSTREE.decode>[] = [];
  #imageVersion: number | undefined;
  #hostname: ByteString | undefined;

  /** Whether a file of this name (within checkpoint/) and size is of use. */
  static wants(name: string, size: number): boolean {
    if (size > LIMITS.imageSize) return false;
    return (
      NUMBERED.test(name) || name === "pstree.img" || name === "inventory.img" || /^(files|utsns-\d+)\.img$/.test(name)
    );
  }

  /** The whole content of a file that is wanted. FormatError for what is no image of its kind. */
  add(name: string, bytes: Uint8Array): void {
    const [, kind, number] = NUMBERED.exec(name) ?? [];
    if (kind === "core") this.#cores.set(Number(number), decodeSingle(bytes, "core", CORE, name));
    else if (kind === "mm") this.#memory.set(Number(number), decodeSingle(bytes, "mm", MM, name));
    else if (kind === "pagemap") this.#pagemaps.set(Number(number), decodePagemap(bytes, name));
    else if (name === "pstree.img") this.#entries = [...decodeImage(bytes, "pstree", PSTREE, name)];
    else if (name === "inventory.img")
      this.#imageVersion = decodeSingle(bytes, "inventory", INVENTORY, name).imgVersion;
    else if (name === "files.img") {
      for (const { id, regular } of decodeImage(bytes, "files", FILE, name)) {
        if (id !== undefined && regular?.name !== undefined) this.#files.set(id, regular.name);
      }
    } else this.#hostname = decodeSingle(bytes, "utsns", UTSNS, name).nodename;
  }

  /**
   * Where in pages-<pagesId>.img command lines are, ascending, as far as the images before it told; their bytes are to be
   * given to `addArguments`.
   */
  argumentsIn(pagesId: number): { readonly pid: number; readonly offset: number; readonly length: number }[] {
    const found: { pid: number; offset: number; length: number }[] = [];
    for (const [pid, pagemap] of this.#pagemaps) {
      if (pagemap.pagesId !== pagesId) continue;
      const { argStart = 0, argEnd = 0 } = this.#memory.get(pid) ?? {};
      if (argEnd <= argStart) continue;
      // of a line that runs on into another run of pages, the beginning tells enough
      const [place] = locateMemory(pagemap, argStart, Math.min(argEnd - argStart, MAX_ARGUMENTS)) ?? [];
      if (place !== undefined) found.push({ pid, ...place });
    }
    return found.sort((a, b) => a.offset - b.offset);
  }

  addArguments(pid: number, bytes: Uint8Array): void {
    this.#arguments.set(pid, byteString(bytes).replace(/\0+$/, "").split("\0"));
  }

  finish(): ProcessTree {
    const children = Map.groupBy(this.#entries, (entry) => entry.ppid ?? 0);
    const known = new Set(this.#entries.map((entry) => entry.pid));
    const processes: Process[] = [];
    const seen = new Set<unknown>();
    // a loop, since a chain of parents may be as long as the list
    const stack = this.#entries.filter((entry) => !known.has(entry.ppid ?? 0) || entry.ppid === entry.pid).reverse();
    for (let entry = stack.pop(); entry !== undefined; entry = stack.pop()) {
      if (seen.has(entry)) continue;
      seen.add(entry);
      processes.push(this.#process(entry));
      stack.push(...(children.get(entry.pid ?? 0) ?? []).toSorted((a, b) => (b.pid ?? 0) - (a.pid ?? 0)));
    }
    // parents in a circle: hostile, or damaged; none is left out
    for (const entry of this.#entries) if (!seen.has(entry)) processes.push(this.#process(entry));
    const machine = [...this.#cores.values()].find((core) => core.machine !== undefined)?.machine;
    return {
      processes,
      architecture: machine === undefined ? undefined : MACHINES[machine],
      hostname: this.#hostname,
      imageVersion: this.#imageVersion,
    };
  }

  #process({ pid = 0, ppid = 0, threads }: ReturnType<typeof PSTREE.decode>): Process {
    const core = this.#cores.get(pid);
    const mm = this.#memory.get(pid);
    const pagemap = this.#pagemaps.get(pid);
    const state = core?.task?.state;
    return {
      pid,
      ppid,
      threads: Math.max(1, threads.length),
      comm: core?.task?.comm,
      executable: mm?.exeFileId === undefined ? undefined : this.#files.get(mm.exeFileId),
      uid: core?.thread?.creds?.uid,
      gid: core?.thread?.creds?.gid,
      state: state === undefined ? undefined : (TASK_STATES[state] ?? String(state)),
      memory: pagemap?.size ?? 0,
      memoryInParent: (pagemap?.parentPages ?? 0) * PAGE_SIZE,
      arguments: this.#arguments.get(pid),
      pagemap,
    };
  }
}
