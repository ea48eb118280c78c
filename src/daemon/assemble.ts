/** The parts of the daemon, put together: who hears of what, and in which order they are closed again. */
import { type CallRecord, RpcServer } from "../rpc/index.ts";
import { openSnapshotter, type RemoteLayers, type Snapshotter, type SnapshotterOptions } from "../snapshotter/index.ts";
import type { RemoteEvent } from "../snapshotter/remote/index.ts";
import type { Log } from "../log/index.ts";
import { Store } from "../store/index.ts";
import { fileSystemStatus, kernelAtLeast, type ServiceManager } from "../sys/index.ts";
import { Collector } from "./background/collector.ts";
import { Exporter } from "./background/exporter.ts";
import type { Config } from "./config/index.ts";
import { Differ } from "./differ/index.ts";
import { DaemonMetrics } from "./metrics/index.ts";
import { describeError, logApplied, logCall, logRemoteEvent, logSnapshotterEvent } from "./observer.ts";
import { openRemote, type Remote } from "./remote.ts";
import { diffService } from "./services/diff.ts";
import { Health } from "./services/health.ts";
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

export interface Assembly {
  /** With all services, not yet listening. */
  readonly server: RpcServer;
  readonly health: Health;
  readonly metrics: DaemonMetrics;
  readonly collector: Collector;
  readonly remote: Remote | undefined;
}

/** Opens everything that is behind the sockets; `stack` closes it. */
export async function assemble(config: Config, options: DaemonOptions, stack: AsyncDisposableStack): Promise<Assembly> {
  const { log, version } = options;
  const store = stack.use(Store.open(config.root, { create: true }));
  let snapshotter: Snapshotter | undefined;
  let server: RpcServer | undefined;
  const metrics = new DaemonMetrics({
    version,
    counts: () => snapshotter!.counts(),
    layers: () => store.totals(),
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
      onProblem: (error) => log.error(describeError(error)),
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
  return { server, health, metrics, collector, remote };
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
