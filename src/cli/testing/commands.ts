/** Commands and a host for tests of the framework. */
import { Writable } from "node:stream";
import { ShaleError } from "../../errors/index.ts";
import { type Command, defineCommand } from "../command.ts";
import { emit, type Output, ReaderGone } from "../output.ts";
import type { Host } from "../run.ts";
import type { CommandEntry } from "../table.ts";

/** Prints what it was given. */
export const show = defineCommand({
  name: "show",
  summary: "Show the context",
  description: "First paragraph.\n\nSecond\nparagraph.",
  arguments: [{ name: "WORD", help: "Any word", optional: true, repeated: true }],
  options: {
    size: { type: "number", short: "s", value: "N", default: 3, help: "A size" },
    kind: { type: "string", value: "KIND", choices: ["a", "b"], help: "A kind" },
  },
  examples: [{ command: "shale show x", help: "One word" }],
  async run(context) {
    const { values, positionals, root } = context;
    context.progress.start("x", { label: "work" }).done();
    context.log.info("running");
    await emit(context, { size: values.size, kind: values.kind, positionals, root }, (value) => JSON.stringify(value));
    return undefined;
  },
});

/** Fails in the way that its argument names. */
export const fail = defineCommand({
  name: "fail",
  summary: "Fail",
  description: "Fails.",
  arguments: [{ name: "HOW", help: "How" }],
  options: {},
  examples: [],
  async run({ positionals, stdout }) {
    switch (positionals[0]) {
      case "answer":
        return 1;
      case "pipe":
        for (;;) await stdout.write("line\n");
      case "mistake":
        throw new TypeError("x is undefined");
      default:
        throw new ShaleError("NOT_FOUND", "Cannot find it: it is absent", { hint: "look elsewhere" });
    }
  },
});

/** Waits until it is stopped, then takes a moment to clean up; `forever` needs more than one signal. */
export const wait = defineCommand({
  name: "wait",
  summary: "Wait for a signal",
  description: "Waits.",
  arguments: [{ name: "HOW", help: "How", optional: true }],
  options: {},
  examples: [],
  async run({ positionals, signal, stdout }) {
    const alive = setInterval(() => undefined, 1000);
    const stopped = new Promise<void>((resolve) => {
      signal.addEventListener("abort", () => resolve(), { once: true });
    });
    await stdout.write("waiting\n");
    await stopped;
    await stdout.write("cleaning up\n");
    if (positionals[0] === "forever") await new Promise(() => undefined);
    clearInterval(alive);
    throw signal.reason;
  },
});

export const TEST_COMMANDS: readonly CommandEntry[] = [show, fail, wait].map((command: Command) => ({
  name: command.name,
  group: "Tests",
  load: () => Promise.resolve(command),
}));

/** A host whose output is kept in memory. */
export function testHost(args: readonly string[], options: Partial<Host> = {}) {
  const written = { stdout: "", stderr: "" };
  const stdout: Output = {
    columns: undefined,
    unicode: true,
    write(chunk) {
      written.stdout += chunk.toString();
      return Promise.resolve();
    },
  };
  const stderr = new Writable({
    decodeStrings: false,
    write(chunk, _encoding, done) {
      written.stderr += String(chunk);
      done();
    },
  });
  const signal = new AbortController().signal;
  const host: Host = { args, env: {}, cwd: "/work", home: "/home/u", uid: 1000, stdout, stderr, signal, ...options };
  return { host, written };
}

/** An output whose reader leaves after some writes. */
export function leavingReader(after: number): Output {
  let writes = 0;
  return {
    columns: undefined,
    unicode: true,
    write: () => (writes++ < after ? Promise.resolve() : Promise.reject(new ReaderGone())),
  };
}
