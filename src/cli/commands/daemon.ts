import type { Config, Daemon as DaemonType } from "../../daemon/index.ts";
import { ShaleError } from "../../errors/index.ts";
import { createLog, type Log } from "../../log/index.ts";
import { type Context, defineCommand, type OptionTable } from "../command.ts";
import { UsageError } from "../usage.ts";

const CONFIG = "/etc/shale/config.toml";
/** A configuration is a page or two. */
const CONFIG_LIMIT = 1024 * 1024;

const OPTIONS = {
  config: {
    type: "string",
    value: "FILE",
    defaultText: `${CONFIG} if it is there`,
    completes: "file",
    help: "Configuration; docs/daemon.md has every option",
  },
  address: {
    type: "string",
    value: "SOCKET",
    defaultText: "/run/shale/shale.sock",
    completes: "file",
    help: "Where containerd finds the daemon",
  },
  containerd: {
    type: "string",
    value: "FILE",
    default: "containerd",
    completes: "file",
    help: "With check: containerd's program",
  },
  "containerd-config": {
    type: "string",
    value: "FILE",
    default: "/etc/containerd/config.toml",
    completes: "file",
    help: "With check: containerd's configuration",
  },
  "print-config": { type: "flag", help: "Print the configuration that would be in effect, and exit" },
} as const satisfies OptionTable;

export const daemon = defineCommand({
  name: "daemon",
  summary: "Serve containerd as its snapshotter",
  description: `
Answers containerd's snapshots and diff services on a unix socket: containerd, Kubernetes and nerdctl then run containers from the
store. Runs until it is stopped; containers go on without it, and find the same mounts after a restart, an upgrade or a kill.

SIGHUP reads the configuration again and applies what can be changed while running; SIGUSR1 logs one level more, SIGUSR2 one level
less. The log goes to stdout.

"shale daemon check" looks at the kernel, containerd's version and configuration, the socket and the disk, says what is wrong, and
prints the lines to add. Its exit code is 1 when something would not work.
`,
  arguments: [{ name: "check", help: "Look at this machine instead of serving", optional: true, completes: "none" }],
  options: OPTIONS,
  examples: [
    { command: "shale daemon", help: "With /etc/shale/config.toml, if there is one" },
    { command: "shale daemon --print-config", help: "Every option, with its default and what is allowed" },
    { command: "shale daemon check", help: "What is missing on this machine" },
  ],
  async run(context) {
    const action = context.positionals[0];
    if (action !== undefined && action !== "check") {
      throw new UsageError(`Cannot run daemon ${action}: there is no such action`, "shale daemon check");
    }
    const config = await effectiveConfig(context);
    if (context.values["print-config"]) {
      const { formatConfig } = await import("../../daemon/index.ts");
      await context.stdout.write(formatConfig(config));
      return undefined;
    }
    if (action === "check") {
      const { checkDaemon } = await import("./daemon-check.ts");
      return await checkDaemon(context, config);
    }
    return await serve(context, config);
  },
});

export type DaemonContext = Context<typeof OPTIONS>;

/** The file, with what the command line says in place of it. */
export async function effectiveConfig({ values, root, rootGiven, logLevel }: DaemonContext): Promise<Config> {
  const { defaultConfig, parseConfig } = await import("../../daemon/index.ts");
  const { findFile, readFile } = await import("../../sys/index.ts");
  const file = values.config ?? CONFIG;
  if (values.config !== undefined && findFile(file) === undefined) {
    throw new ShaleError("NOT_FOUND", `Cannot read ${file}: there is no such file`);
  }
  const config =
    findFile(file) === undefined ? defaultConfig() : parseConfig(readFile(file, CONFIG_LIMIT).toString("utf8"), file);
  const address = values.address ?? config.address;
  if (!address.startsWith("/")) {
    throw new UsageError(
      `Cannot listen on ${address}: it is no absolute path`,
      "write --address /run/shale/shale.sock",
    );
  }
  return {
    ...config,
    address,
    root: rootGiven ? root : config.root,
    log: { ...config.log, level: logLevel ?? config.log.level },
  };
}

async function serve(context: DaemonContext, config: Config): Promise<undefined> {
  const { Daemon, LevelSwitch } = await import("../../daemon/index.ts");
  const { onSignal, serviceManager } = await import("../../sys/index.ts");
  const manager = serviceManager();
  const levels = new LevelSwitch(config.log.level);
  let { format } = config.log;
  const write = (line: string) => {
    context.stdout.write(`${line}\n`).catch(() => undefined); // a reader that has gone stops the command by its signal
  };
  const common = { level: () => levels.level, write, now: () => new Date() };
  const logs = { json: createLog({ ...common, json: true }), text: createLog({ ...common, json: false }) };
  const current = () => (context.json ? logs.json : logs[format]);
  const log: Log = {
    error: (message, fields) => current().error(message, fields),
    warn: (message, fields) => current().warn(message, fields),
    info: (message, fields) => current().info(message, fields),
    debug: (message, fields) => current().debug(message, fields),
  };
  const step = (by: 1 | -1) => () => log.error(`The log level is ${levels.step(by)} now`);
  // Before the start: without a handler these signals would end the process.
  let daemon: DaemonType | undefined;
  const reload = () =>
    daemon?.reloading(async () => {
      try {
        const again = await effectiveConfig(context);
        levels.level = again.log.level;
        format = again.log.format;
        log.info("Read the configuration again; options beside [log] need a restart");
      } catch (error) {
        log.error(`Kept the configuration: ${error instanceof Error ? error.message : String(error)}`);
      }
    });
  using _signals = disposeAll([
    onSignal("SIGUSR1", step(1)),
    onSignal("SIGUSR2", step(-1)),
    onSignal("SIGHUP", () => void reload()),
  ]);
  await using started = await Daemon.start(config, { version: await version(), log, manager });
  daemon = started;
  await new Promise<void>((resolve) => {
    if (context.signal.aborted) return resolve();
    context.signal.addEventListener("abort", () => resolve(), { once: true });
  });
  await started.close();
  log.info("Stopped");
  return undefined;
}

async function version(): Promise<string> {
  return (await import("./version.ts")).versionInfo().shale;
}

function disposeAll(items: readonly Disposable[]): Disposable {
  const stack = new DisposableStack();
  for (const item of items) stack.use(item);
  return stack;
}
