/** Where results go. Bytes reach it in order; a reader that has left (EPIPE) is success, not a failure. */
import type { Context } from "./command.ts";

export interface Output {
  /** Resolves when the chunk has been taken. Rejects with {@link ReaderGone} once nobody reads any more. */
  write(chunk: string | Uint8Array): Promise<void>;
  /** The terminal's width, or undefined where the output is no terminal. */
  readonly columns: number | undefined;
  /** Whether block graphics may be used. */
  readonly unicode: boolean;
}

/** The reader of stdout has closed it (`shale ls | head`). The command ends early, quietly and with exit code 0. */
export class ReaderGone extends Error {
  override readonly name = "ReaderGone";
  constructor() {
    super("The reader of the output has closed it");
  }
}

/** Prints a command's result: as JSON with --json, as `render` shows it otherwise. */
export async function emit<T>(
  context: Pick<Context, "json" | "stdout">,
  value: T,
  render: (value: T, output: Output) => string,
): Promise<void> {
  const text = context.json ? formatJson(value) : render(value, context.stdout);
  if (text !== "") await context.stdout.write(text.endsWith("\n") ? text : `${text}\n`);
}

/** Two spaces of indent and a line end. A bigint becomes a number where that is exact, otherwise a decimal string. */
export function formatJson(value: unknown): string {
  const text = JSON.stringify(
    value,
    (_, member: unknown) => {
      if (typeof member !== "bigint") return member;
      return Number.isSafeInteger(Number(member)) ? Number(member) : member.toString();
    },
    2,
  );
  return `${text}\n`;
}

/** An Output over a Node stream. Backpressure is honoured: one chunk is in flight at a time. */
export function streamOutput(
  stream: NodeJS.WriteStream,
  options: { readonly unicode: boolean; readonly onReaderGone: () => void },
): Output {
  let failure: Error | undefined;
  // The callback of write() sees the error too; the listener keeps it from being thrown, also between writes.
  stream.on("error", (error: NodeJS.ErrnoException) => {
    failure = failureOf(error);
    if (error.code === "EPIPE") options.onReaderGone();
  });
  return {
    columns: stream.isTTY ? stream.columns : undefined,
    unicode: options.unicode,
    write(chunk) {
      return new Promise((resolve, reject) => {
        if (failure !== undefined) return reject(failure);
        stream.write(chunk, (error?: NodeJS.ErrnoException | null) => (error ? reject(failureOf(error)) : resolve()));
      });
    },
  };
}

/** "Cannot write the output: no space left on device" is what is made of it. */
function failureOf(error: NodeJS.ErrnoException): Error {
  return error.code === "EPIPE" ? new ReaderGone() : Object.assign(error, { path: "the output" });
}
