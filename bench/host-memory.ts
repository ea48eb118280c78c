/**
 * Memory of a virtual machine that its host takes back. A guest with free page reporting gives up what is freed, a dropped page cache
 * for example, and the next use of each page waits for the host: on our machine 280 MB/s, less than its disk takes. Whoever writes
 * files fastest then waits for that alone, and all contestants seem alike. On hardware there is no such thing.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "./process.ts";

const PARAMETERS = "/sys/module/page_reporting/parameters";
/**
 * Free pages are reported once they were free for so long, or are so many. Not in every kernel; these are values that one which has
 * them takes.
 */
const PUT_OFF: Readonly<Record<string, string>> = { min_free_ms: "300000", max_waiting_mib: "1000000" };
/** Left alone, for whatever else needs some. */
const SPARE = 2 * 2 ** 30;
const CHUNK = 2 ** 28;

export interface HeldMemory extends Disposable {
  /** What is done, for the report; undefined where there is nothing to do. */
  readonly told: string | undefined;
}

/** Has the host give all memory, and keeps it from taking it back, until disposed of. */
export async function holdMemory(): Promise<HeldMemory> {
  using changed = new DisposableStack();
  if (!existsSync(PARAMETERS)) return { told: undefined, [Symbol.dispose]: () => {} };
  for (const [name, value] of Object.entries(PUT_OFF)) {
    const path = join(PARAMETERS, name);
    if (!existsSync(path)) return { told: "given back to the host", [Symbol.dispose]: () => {} };
    const before = readFileSync(path, "utf8").trim();
    writeFileSync(path, value);
    changed.defer(() => writeFileSync(path, before));
  }
  await touch(freeMemory() - SPARE);
  const held = changed.move();
  return { told: "kept from being given back to the host", [Symbol.dispose]: () => held.dispose() };
}

/** In a process of its own, which gives it to the kernel again. */
async function touch(bytes: number): Promise<void> {
  const chunks = Math.max(0, Math.floor(bytes / CHUNK));
  await run([
    process.execPath,
    "-e",
    `const held = []; for (let i = 0; i < ${chunks}; i++) held.push(Buffer.alloc(${CHUNK}, 1));`,
  ]);
}

function freeMemory(): number {
  return 1024 * Number(/^MemFree:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))?.[1]);
}
