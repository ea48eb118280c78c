/** Commands that start something which goes on after them, and after this process. */
import { spawn } from "node:child_process";
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { cancelled, throwIfAborted } from "../async/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { pipe } from "./libc.ts";

/** What is read of a command's output, for the message when it fails. */
const SAID_LIMIT = 4096;

/** How a command ended that started something which goes on. */
export interface DetachedResult {
  readonly code: number | undefined;
  /** What was written to the output since the command began; at most 4096 bytes. */
  readonly said: string;
}

/**
 * Runs a command that leaves processes behind with its own stdin, stdout and stderr. Those are /dev/null and a pipe, which a
 * `cat` of its own session copies to the end of the file `output` for as long as anyone writes: a file would do, but CRIU
 * can't checkpoint a container that has one of the host open. Resolves when the command itself has ended.
 */
export async function runDetaching(
  command: string,
  args: readonly string[],
  options: { readonly output: string; readonly signal?: AbortSignal },
): Promise<DetachedResult> {
  const { signal } = options;
  throwIfAborted(signal);
  using opened = new DisposableStack();
  const output = opened.adopt(openSync(options.output, "a+", 0o600), closeSync);
  const before = fstatSync(output).size;
  const ends = pipe();
  const read = opened.adopt(ends.read, closeSync);
  using writing = new DisposableStack();
  const write = writing.adopt(ends.write, closeSync);
  const logger = spawn("cat", [], { stdio: [read, output, "ignore"], detached: true });
  const logged = new Promise<void>((resolve) => {
    logger.on("error", () => resolve()); // then nothing is logged, and a command that writes much ends by SIGPIPE
    logger.on("exit", () => resolve());
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", write, write] });
    const onAbort = () => child.kill("SIGKILL");
    signal?.addEventListener("abort", onAbort, { once: true });
    child.on("error", (cause) => {
      const kind = errnoOf(cause) === "ENOENT" ? "NOT_FOUND" : "FAILED_PRECONDITION";
      reject(new ShaleError(kind, `Cannot run ${command}: ${cause.message}`, { cause }));
    });
    child.on("exit", (status) => {
      signal?.removeEventListener("abort", onAbort);
      resolve(status);
    });
  }).finally(() => logger.unref());
  if (signal?.aborted) throw cancelled(signal);
  if (code === 0) return { code, said: "" };
  writing.dispose(); // the last writer, unless the command left some
  await logged;
  const said = Buffer.alloc(SAID_LIMIT);
  const length = readSync(output, said, 0, said.length, before);
  return { code: code ?? undefined, said: said.toString("utf8", 0, length) };
}
