/** A program as a stage of a stream: bytes in, bytes out, with backpressure on both sides. */
import { spawn } from "node:child_process";
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { cancelled, throwIfAborted } from "../async/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";

/** What is kept of a program's stderr, for the message when it fails. */
const STDERR_LIMIT = 4096;

/**
 * Feeds `source` to a command's stdin and yields its stdout. INVALID_ARGUMENT with what it said when it ends with another code
 * than 0 (all known filters do so for damaged input only); NOT_FOUND when there is no such command. The command has
 * ended when the iteration has, also early or by `signal`.
 */
export async function* filterThrough(
  command: string,
  args: readonly string[],
  source: AsyncIterable<Uint8Array>,
  options: { readonly signal?: AbortSignal } = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  throwIfAborted(options.signal);
  const child = spawn(command, args, { stdio: "pipe" });
  const ended = new Promise<number | string>((resolve, reject) => {
    child.on("error", reject);
    child.on("close", (code, signal) => resolve(code ?? signal ?? "nothing"));
  });
  ended.catch(() => undefined); // awaited below; without stdout it may reject before that
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => {
    if (said.length < STDERR_LIMIT) said += chunk.toString();
  });
  child.stdin.on("error", () => undefined); // EPIPE: why the command went away shows in its exit code
  const onAbort = () => child.kill("SIGKILL");
  options.signal?.addEventListener("abort", onAbort, { once: true });
  const feeding = feed(child.stdin, source);
  feeding.catch(() => child.kill("SIGKILL"));
  let finished = false;
  try {
    for await (const chunk of child.stdout) yield chunk as Buffer;
    await feeding;
    const code = await ended;
    finished = true;
    throwIfAborted(options.signal);
    if (code !== 0) {
      throw new ShaleError(
        "INVALID_ARGUMENT",
        `Cannot read through ${command}: ${said.trim() || `it ended with ${code}`}`,
      );
    }
  } catch (error) {
    if (options.signal?.aborted) throw cancelled(options.signal);
    if (errnoOf(error) !== "ENOENT") throw error;
    finished = true;
    throw new ShaleError("NOT_FOUND", `Cannot run ${command}: there is no such program`, {
      cause: error,
      hint: `Install ${command}, or unpack the file with it elsewhere`,
    });
  } finally {
    options.signal?.removeEventListener("abort", onAbort);
    if (!finished) {
      child.kill("SIGKILL");
      await ended.catch(() => undefined);
    }
  }
}

async function feed(stdin: NodeJS.WritableStream, source: AsyncIterable<Uint8Array>): Promise<void> {
  for await (const piece of source) {
    // The buffer belongs to the source again once the next piece is asked for.
    const gone = await new Promise<boolean>((resolve) => {
      stdin.write(piece, (error) => resolve(error !== null && error !== undefined));
    });
    if (gone) break;
  }
  stdin.end();
}

/** How a command ended that started something which goes on. */
export interface DetachedResult {
  readonly code: number | undefined;
  readonly stderr: string;
}

/**
 * Runs a command that leaves processes behind with its own stdin, stdout and stderr: those are /dev/null and the end of the file
 * `output`, in no pipe that this process would have to wait for. Resolves when the command itself has ended.
 */
export function runDetaching(
  command: string,
  args: readonly string[],
  options: { readonly output: string; readonly signal?: AbortSignal },
): Promise<DetachedResult> {
  throwIfAborted(options.signal);
  const { signal } = options;
  const output = openSync(options.output, "a+", 0o600);
  const before = fstatSync(output).size;
  return new Promise<DetachedResult>((resolve, reject) => {
    const child = spawn(command, args, { stdio: ["ignore", output, output] });
    const onAbort = () => child.kill("SIGKILL");
    signal?.addEventListener("abort", onAbort, { once: true });
    child.on("error", (cause) => {
      const code = errnoOf(cause) === "ENOENT" ? "NOT_FOUND" : "FAILED_PRECONDITION";
      reject(new ShaleError(code, `Cannot run ${command}: ${cause.message}`, { cause }));
    });
    child.on("exit", (code) => {
      signal?.removeEventListener("abort", onAbort);
      if (signal?.aborted) return reject(cancelled(signal));
      const said = Buffer.alloc(STDERR_LIMIT);
      const length = readSync(output, said, 0, said.length, before);
      resolve({ code: code ?? undefined, stderr: said.toString("utf8", 0, length) });
    });
  }).finally(() => closeSync(output));
}
