/**
 * The daemon: the store, the snapshotter and the services on one socket, started and stopped in the right order.
 *
 * start: store, snapshotter (which takes the root's lock), services, socket. Until the socket is there nobody is answered; from then on
 * everything is. stop: readiness goes, the socket's name goes, calls under way end, then the parts in reverse. No mount is touched:
 * containers run on them. A kill at any moment is as good as a stop.
 */
import { type Log, LOG_LEVELS, type LogLevel } from "../log/index.ts";
import { type CallRecord, RpcServer } from "../rpc/index.ts";
import { openSnapshotter, type RemoteLayers, type Snapshotter, type SnapshotterOptions } from "../snapshotter/index.ts";
import type { RemoteEvent } from "../snapshotter/remote/index.ts";
import { Store } from "../store/index.ts";
import { fileSystemStatus, kernelAtLeast, monotonicMicroseconds, type ServiceManager } from "../sys/index.ts";
import { Collector } from "./background/collector.ts";
import { Exporter } from "./background/exporter.ts";
import type { Config } from "./config/index.ts";
import { type ProbeServer, serveProbes } from "./metrics/http.ts";
import { DaemonMetrics } from "./metrics/index.ts";
import { Differ } from "./differ/index.ts";
import { describeError, logApplied, logCall, logRemoteEvent, logSnapshotterEvent } from "./observer.ts";
import { openRemote } from "./remote.ts";
import { Health } from "./services/health.ts";
import { diffService } from "./services/diff.ts";
import { DIFF_SERVICE, diffMethods, healthMethods, SNAPSHOTS_SERVICE, snapshotsMethods } from "./services/messages.ts";
import { snapshotsService } from "./services/snapshots.ts";

/** What the daemon does not make itself. */
export interface DaemonParts {
  readonly openSnapshotter: (store: Store, options: SnapshotterOptions) => Promise<Snapshotter>;
}

export interface DaemonOptions {
  readonly version: string;
  readonly log: Log;
  readonly manager: ServiceManager;
  readonly parts?: Partial<DaemonParts>;
}

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
    const { log, manager, version } = options;
    await using stack = new AsyncDisposableStack();
    const store = stack.use(Store.open(config.root, { create: true }));
    const totals = () => store.totals();
    let snapshotter: Snapshotter | undefined;
    let server: RpcServer | undefined;
    const metrics = new DaemonMetrics({
      version,
      counts: () => snapshotter!.counts(),
      layers: totals,
      disk: () => fileSystemStatus(config.root),
      running: () => server!.running,
    });
    let exporter: Exporter | undefined;
    const collector = new Collector(config.root, (result, error) => {
      metrics.onCollected(result);
      exporter?.forget();
      if (result === undefined) log.error(describeError(error));
      else if (result.items > 0) {
        log.info("Collected garbage", { items: result.items, freed: result.freed, ms: Math.round(result.durationMs) });
      }
    });
    stack.defer(() => collector.close());
    const onRemote = (event: RemoteEvent) => {
      metrics.onRemote(event);
      logRemoteEvent(log, event);
    };
    const { DiskBudget } = await import("../snapshotter/remote/index.ts");
    const disk = new DiskBudget({
      root: config.root,
      highMark: config.disk.highWatermark / 100,
      async collect() {
        collector.want();
        await collector.collect();
      },
    });
    const remote = await openRemote(config, { store, disk, log, onEvent: onRemote });
    if (remote !== undefined) stack.use(remote);
    const open = options.parts?.openSnapshotter ?? openSnapshotter;
    snapshotter = stack.use(await open(store, { ...snapshotterOptions(config, remote?.layers), onEvent }));
    function onEvent(event: Parameters<NonNullable<SnapshotterOptions["onEvent"]>>[0]): void {
      metrics.onSnapshotter(event);
      logSnapshotterEvent(log, event);
    }

    const differ = stack.use(
      new Differ({
        ...{ store, snapshotter, disk, unpacks: config.limits.unpacks, containerd: config.containerd },
        onApplied(layer) {
          metrics.onApplied(layer);
          logApplied(log, layer);
        },
      }),
    );
    exporter = new Exporter(config, {
      ...{ root: config.root, snapshotter },
      onExported: (disks, bytes, ms) => log.info("Made disks", { disks, bytes, ms: Math.round(ms) }),
      onProblem: (error) => log.error(describeError(error)),
    });
    stack.defer(() => exporter?.close());
    const health = new Health([SNAPSHOTS_SERVICE, DIFF_SERVICE]);
    const observe = (record: CallRecord) => {
      metrics.onCall(record);
      logCall(log, record);
      if (record.method.name === "Remove" && record.status.name === "OK") collector.want();
    };
    server = new RpcServer({ observe });
    server.add(snapshotsMethods(), snapshotsService(snapshotter, exporter));
    server.add(diffMethods(), diffService(differ));
    server.add(healthMethods(), health.handlers());
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
    manager.notify("READY=1", `STATUS=Serving on ${config.address}`);
    daemon.#watch();
    log.info("Serving", {
      ...{ address: config.address, root: config.root, version, metrics: probes?.address },
      ms: Math.round(performance.now() - started),
    });
    return daemon;
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
    const { log, manager } = this.#options;
    manager.notify("STOPPING=1", "STATUS=Waiting for calls under way");
    log.info("Stopping", { calls: this.#server.running });
    this.#health.end();
    try {
      await this.#server.close(DRAIN_MS);
      await this.#stack.disposeAsync();
    } finally {
      this.#closed.resolve();
    }
  }

  /** Pings systemd's watchdog from the event loop: a daemon that hangs is restarted. */
  #watch(): void {
    const { manager } = this.#options;
    if (manager.watchdogMs === undefined) return;
    const timer = setInterval(() => manager.notify("WATCHDOG=1"), manager.watchdogMs);
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

/** Tells systemd that the configuration is being read again while `body` does it. */
export async function reloading(manager: ServiceManager, body: () => Promise<void>): Promise<void> {
  manager.notify("RELOADING=1", `MONOTONIC_USEC=${monotonicMicroseconds()}`);
  try {
    await body();
  } finally {
    manager.notify("READY=1");
  }
}

function snapshotterOptions({ mounts, plain }: Config, remote: RemoteLayers | undefined): SnapshotterOptions {
  return {
    mode: mounts.mode,
    volatile: mounts.volatile,
    remapIds: mounts.remapIds && kernelAtLeast(5, 12),
    convertPlain: plain.layers === "convert",
    ...(remote === undefined ? {} : { remote }),
  };
}
