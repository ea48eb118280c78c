/**
 * The daemon: the store, the snapshotter and the services on one socket, started and stopped in the right order.
 *
 * start: store, snapshotter (which takes the root's lock), services, socket. Until the socket is there nobody is answered; from then on
 * everything is. stop: readiness goes, the socket's name goes, calls under way end, then the parts in reverse. No mount is touched:
 * containers run on them. A kill at any moment is as good as a stop.
 */
import { LOG_LEVELS, type LogLevel } from "../log/index.ts";
import type { RpcServer } from "../rpc/index.ts";
import { fileSystemStatus, giveThreadsTheirYoungGeneration, monotonicMicroseconds } from "../sys/index.ts";
import { assemble, type DaemonOptions } from "./assemble.ts";
import type { Config } from "./config/index.ts";
import { type ProbeServer, serveProbes } from "./metrics/http.ts";
import { describeError } from "./observer.ts";
import type { Health } from "./services/health.ts";

export type { DaemonOptions, DaemonParts } from "./assemble.ts";

/** Calls under way when the daemon is stopped may take so long to end; a pull is given up and goes on after the restart. */
const DRAIN_MS = 8_000;

export class Daemon implements AsyncDisposable {
  readonly #stack: AsyncDisposableStack;
  readonly #health: Health;
  readonly #server: RpcServer;
  readonly #options: DaemonOptions;
  readonly #closed = Promise.withResolvers<void>();
  /** Where metrics are served, if they are. */
  readonly probes: ProbeServer | undefined;
  #closing: Promise<void> | undefined;

  private constructor(
    stack: AsyncDisposableStack,
    parts: { readonly health: Health; readonly server: RpcServer; readonly probes: ProbeServer | undefined },
    options: DaemonOptions,
  ) {
    this.#stack = stack;
    this.#health = parts.health;
    this.#server = parts.server;
    this.probes = parts.probes;
    this.#options = options;
  }

  /**
   * Resolves when the socket answers. FAILED_PRECONDITION when another daemon has the root or the socket; what was opened by then is
   * closed again.
   */
  static async start(config: Config, options: DaemonOptions): Promise<Daemon> {
    const started = performance.now();
    const { log, version } = options;
    giveThreadsTheirYoungGeneration();
    await using stack = new AsyncDisposableStack();
    const { server, health, metrics, collector, remote } = await assemble(config, options, stack);
    const probes =
      config.metrics.address === ""
        ? undefined
        : await serveProbes(config.metrics.address, { metrics: () => metrics.text(), ready: () => health.serving });
    if (probes !== undefined) stack.defer(() => probes.close());
    await remote?.listen();
    await server.listen(config.address);
    health.serving = true;
    const { highWatermark, lowWatermark, gcInterval } = config.disk;
    if (highWatermark < 100)
      collector.start(gcInterval, () => fileSystemStatus(config.root).usedShare > lowWatermark / 100);
    const daemon = new Daemon(stack.move(), { health, server, probes }, options);
    daemon.#tell("READY=1", `STATUS=Serving on ${config.address}`);
    daemon.#watch();
    log.info("Serving", {
      ...{ address: config.address, root: config.root, version, metrics: probes?.address },
      ms: Math.round(performance.now() - started),
    });
    return daemon;
  }

  /** Tells the service manager that the configuration is being read again while `body` does it. */
  async reloading(body: () => Promise<void>): Promise<void> {
    this.#tell("RELOADING=1", `MONOTONIC_USEC=${monotonicMicroseconds()}`);
    try {
      await body();
    } finally {
      this.#tell("READY=1");
    }
  }

  /** Resolves when it has been closed. */
  get closed(): Promise<void> {
    return this.#closed.promise;
  }

  /** Stops in an orderly way; see above. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#stop();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #stop(): Promise<void> {
    const { log } = this.#options;
    this.#tell("STOPPING=1", "STATUS=Waiting for calls under way");
    log.info("Stopping", { calls: this.#server.running });
    this.#health.end();
    try {
      await this.#server.close(DRAIN_MS);
      await this.#stack.disposeAsync();
    } finally {
      this.#closed.resolve();
    }
  }

  /** A service manager that is away for a moment (it re-executes itself on upgrades) must not take the daemon along. */
  #tell(...lines: readonly string[]): void {
    const { log, manager } = this.#options;
    try {
      manager.notify(...lines);
    } catch (error) {
      log.warn(`Cannot tell the service manager ${lines[0]}: ${describeError(error)}`);
    }
  }

  /** Pings systemd's watchdog from the event loop: a daemon that hangs is restarted. */
  #watch(): void {
    const { manager } = this.#options;
    if (manager.watchdogMs === undefined) return;
    const timer = setInterval(() => this.#tell("WATCHDOG=1"), manager.watchdogMs);
    timer.unref();
    this.#stack.defer(() => clearInterval(timer));
  }
}

/** The level that is logged, changed by signals and by a configuration that is read again. */
export class LevelSwitch {
  level: LogLevel;

  constructor(level: LogLevel) {
    this.level = level;
  }

  /** One level more (1) or less (-1), as far as there is one. */
  step(by: 1 | -1): LogLevel {
    const at = LOG_LEVELS.indexOf(this.level) + by;
    this.level = LOG_LEVELS[Math.min(LOG_LEVELS.length - 1, Math.max(0, at))]!;
    return this.level;
  }
}
