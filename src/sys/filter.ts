/** A program as a stage of a stream: bytes in, bytes out, with backpressure on both sides. */
import { spawn } from "node:child_process";
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
