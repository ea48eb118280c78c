/** A Node process that runs a piece of a module and is watched by a test: for locks, crashes and faults across processes. */
import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";

export interface ChildEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
}

export class Child implements AsyncDisposable {
  readonly #process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  #stderr = "";
  readonly ended: Promise<ChildEnd>;

  /** `source` is the text of an ES module; imports must be absolute URLs, see {@link moduleUrl}. */
  constructor(source: string, env: Readonly<Record<string, string>> = {}, wrapper: readonly string[] = []) {
    // Not --input-type: worker threads would inherit it and refuse their files. The imports of `source` make it a module.
    const words = [...wrapper, process.execPath, "-e", source];
    this.#process = spawn(words[0]!, words.slice(1), { env: { ...process.env, ...env }, stdio: "pipe" });
    this.#lines = createInterface(this.#process.stdout!)[Symbol.asyncIterator]();
    this.#process.stderr!.on("data", (chunk: Buffer) => {
      this.#stderr += chunk.toString();
    });
    this.ended = new Promise((resolve, reject) => {
      this.#process.on("error", reject);
      this.#process.on("close", (code, signal) => resolve({ code, signal, stderr: this.#stderr }));
    });
  }

  get pid(): number {
    return this.#process.pid!;
  }

  /** The next line that it prints; an error with its stderr when it ends instead. */
  async line(): Promise<string> {
    const next = await this.#lines.next();
    if (next.done) throw new Error(`The child ended without a line: ${(await this.ended).stderr}`);
    return next.value;
  }

  /** Writes to its standard input: the barrier that a test opens. */
  send(text: string): void {
    this.#process.stdin!.write(text);
  }

  kill(signal: NodeJS.Signals): void {
    this.#process.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.kill("SIGKILL");
    await this.ended;
  }
}

/** The URL of a module of `sys/`, for the source of a {@link Child}, as a string literal. */
export function moduleUrl(name: string): string {
  return JSON.stringify(new URL(`../${name}`, import.meta.url).href);
}
