/**
 * Memory of a virtual machine that its host takes back. A guest with free page reporting gives up what is freed, a dropped page cache
 * for example, and the next use of each page waits for the host: on our machine 280 MB/s, less than its disk takes. Whoever writes
 * files fastest then waits for that alone, and all contestants seem alike. On hardware there is no such thing.
 */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "./process.ts";

const PARAMETERS = "/sys/module/page_reporting/parameters";
/** Free pages are reported once they were free for so long. Not in every kernel. */
const DELAY = "min_free_ms";
const HOURS_MS = "36000000";
/** Left alone, for whatever else needs some. */
const SPARE = 2 * 2 ** 30;
const CHUNK = 2 ** 28;

/**
 * Has the host give all memory, and keeps it from taking it back, until disposed of. Nothing happens where there is no host that
 * does. What was done is told in a sentence, undefined for nothing.
 */
export async function holdMemory(): Promise<{ readonly told: string | undefined } & Disposable> {
  const path = join(PARAMETERS, DELAY);
  if (!existsSync(path)) {
    const told = existsSync(PARAMETERS) ? "given back to the host when freed, which slows down all writing" : undefined;
    return { told, [Symbol.dispose]: () => {} };
  }
  const before = readFileSync(path, "utf8").trim();
  writeFileSync(path, HOURS_MS);
  const held = { told: "kept from being given back to the host", [Symbol.dispose]: () => writeFileSync(path, before) };
  try {
    await touch(freeMemory() - SPARE);
    return held;
  } catch (error) {
    held[Symbol.dispose]();
    throw error;
  }
}

/** In a process of its own, which gives it to the kernel again. */
async function touch(bytes: number): Promise<void> {
  const program = `const held = []; for (let i = 0; i < ${Math.floor(bytes / CHUNK)}; i++) held.push(Buffer.alloc(${CHUNK}, 1));`;
  await run([process.execPath, "-e", program]);
}

function freeMemory(): number {
  return 1024 * Number(/^MemFree:\s+(\d+) kB$/m.exec(readFileSync("/proc/meminfo", "utf8"))?.[1]);
}
