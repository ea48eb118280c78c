/**
 * The edge to the process: the one place of the command line that reads the environment, owns signals and exits.
 *
 * SIGINT and SIGTERM abort the command's signal; it cleans up and the process ends with 130 or 143. A second signal
 * kills at once: the store is made to survive that.
 */
import { homedir } from "node:os";
import { ShaleError } from "../errors/index.ts";
import { EXIT } from "./command.ts";
import { ReaderGone, streamOutput } from "./output.ts";
import { run } from "./run.ts";
import type { CommandEntry } from "./table.ts";

/** Runs the command line that this process was started with, and ends the process. */
export async function runProcess(commands?: readonly CommandEntry[]): Promise<never> {
  const stop = new AbortController();
  let exitBySignal: number | undefined;
  const stopOn = (name: "SIGINT" | "SIGTERM", code: number) => {
    process.on(name, () => {
      if (exitBySignal !== undefined) {
        process.removeAllListeners(name);
        process.kill(process.pid, name);
        return;
      }
      exitBySignal = code;
      stop.abort(new ShaleError("CANCELLED", `Stopped by ${name}`));
    });
  };
  stopOn("SIGINT", EXIT.interrupted);
  stopOn("SIGTERM", EXIT.terminated);

  // A terminal that went away must not turn an error message into a crash.
  process.stderr.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE" && error.code !== "EIO") throw error;
  });

  const { env } = process;
  const code = await run(
    {
      args: process.argv.slice(2),
      env,
      cwd: process.cwd(),
      home: homedir(),
      uid: process.geteuid?.() ?? 0,
      stdout: streamOutput(process.stdout, {
        unicode: /utf-?8/i.test(env.LC_ALL || env.LC_CTYPE || env.LANG || ""),
        onReaderGone: () => stop.abort(new ReaderGone()),
      }),
      stderr: process.stderr,
      signal: stop.signal,
    },
    commands,
  );

  // Results are written by now. Sockets that a client keeps open for reuse would hold the process for seconds more.
  await new Promise<void>((resolve) => {
    process.stderr.write("", () => resolve());
  });
  process.exit(exitBySignal !== undefined && code !== EXIT.ok ? exitBySignal : code);
}
