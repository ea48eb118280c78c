/**
 * What the daemon counts. Every metric is made here, so that this page is the list of them; docs/daemon.md explains them.
 */
import type { CallRecord } from "../../rpc/index.ts";
import type { SnapshotCounts, SnapshotterEvent } from "../../snapshotter/index.ts";
import type { RemoteEvent } from "../../snapshotter/remote/index.ts";
import { processNumbers } from "../../sys/index.ts";
import { MetricRegistry } from "./registry.ts";

/** Read when metrics are asked for. */
export interface MetricSources {
  readonly version: string;
  readonly counts: () => SnapshotCounts;
  readonly layers: () => { readonly count: number; readonly bytes: number };
  readonly disk: () => { readonly size: number; readonly available: number };
  readonly running: () => number;
}

/** Bytes through the differ, and how it went. */
export interface AppliedLayer {
  readonly state: "present" | "stored";
  readonly bytes: number;
  readonly durationMs: number;
}

export class DaemonMetrics {
  readonly #registry = new MetricRegistry();
  readonly #rpcs = this.#registry.counter("shale_rpc_total", "Calls that have ended", ["method", "code"]);
  readonly #rpcSeconds = this.#registry.histogram("shale_rpc_duration_seconds", "Time of a call", ["method"]);
  readonly #layers = this.#registry.counter(
    "shale_layers_total",
    "Layers that were asked for, by who brought them and how",
    ["source", "state"],
  );
  readonly #layerSeconds = this.#registry.histogram(
    "shale_layer_duration_seconds",
    "Time until a layer that was asked for was there",
    ["source", "state"],
  );
  readonly #received = this.#registry.counter("shale_layer_bytes_total", "Compressed bytes of layers taken in", [
    "source",
  ]);
  readonly #failures = this.#registry.counter(
    "shale_remote_failures_total",
    "Images and layers that could not be fetched",
    ["kind"],
  );
  readonly #mounts = this.#registry.counter("shale_mounts_total", "Mounts made below the root", ["kind"]);
  readonly #mountSeconds = this.#registry.histogram("shale_mount_duration_seconds", "Time of one mount");
  readonly #mergeSeconds = this.#registry.histogram(
    "shale_merge_duration_seconds",
    "Time to merge the layers of a chain",
  );
  readonly #conversions = this.#registry.counter("shale_conversions_total", "Plain directories made into layers", [
    "state",
  ]);
  readonly #removed = this.#registry.counter(
    "shale_removed_bytes_total",
    "Bytes of removed snapshots that were deleted",
  );
  readonly #trouble = this.#registry.counter(
    "shale_trouble_total",
    "Things that went wrong without failing a call; see the log",
  );
  readonly #gc = this.#registry.counter("shale_gc_total", "Garbage collections", ["state"]);
  readonly #gcSeconds = this.#registry.histogram("shale_gc_duration_seconds", "Time of one garbage collection");
  readonly #gcFreed = this.#registry.counter("shale_gc_freed_bytes_total", "Bytes that garbage collection gave back");

  constructor(sources: MetricSources) {
    const registry = this.#registry;
    registry.gauge("shale_info", "Always 1; the version is a label", ["version"], () => [[1, sources.version]]);
    registry.gauge("shale_rpc_running", "Calls under way", [], () => [[sources.running()]]);
    registry.gauge("shale_snapshots", "Snapshots", ["kind"], () => {
      const { active, view, committed } = sources.counts();
      return [
        [active, "active"],
        [view, "view"],
        [committed, "committed"],
      ];
    });
    registry.gauge("shale_store_layers", "Layers in the store", [], () => [[sources.layers().count]]);
    registry.gauge("shale_store_bytes", "Bytes of layers in the store, payloads and metadata", [], () => [
      [sources.layers().bytes],
    ]);
    registry.gauge("shale_disk_bytes", "Size of the root's file system", [], () => [[sources.disk().size]]);
    registry.gauge("shale_disk_available_bytes", "Bytes of it that may still be written", [], () => [
      [sources.disk().available],
    ]);
    addProcess(registry);
  }

  text(): string {
    return this.#registry.text();
  }

  onCall({ method, status, durationMs }: CallRecord): void {
    this.#rpcs.add(1, method.name, status.name);
    this.#rpcSeconds.observe(durationMs / 1000, method.name);
  }

  onSnapshotter(event: SnapshotterEvent): void {
    switch (event.kind) {
      case "mounted":
        this.#mounts.add(1, event.again ? "again" : "new");
        this.#mountSeconds.observe(event.durationMs / 1000);
        break;
      case "unmounted":
        this.#mounts.add(1, "unmounted");
        break;
      case "merged":
        this.#mergeSeconds.observe(event.durationMs / 1000);
        break;
      case "converted":
      case "not-converted":
        this.#conversions.add(1, event.kind);
        break;
      case "removed":
        this.#removed.add(event.bytes);
        break;
      case "trouble":
        this.#trouble.add(1);
        break;
      case "recovered":
        break;
    }
  }

  onRemote(event: RemoteEvent): void {
    if (event.kind !== "layer") {
      this.#failures.add(1, event.kind);
      return;
    }
    this.#layers.add(1, "remote", event.state);
    this.#layerSeconds.observe(event.durationMs / 1000, "remote", event.state);
    this.#received.add(event.received, "remote");
  }

  onApplied({ state, bytes, durationMs }: AppliedLayer): void {
    this.#layers.add(1, "apply", state);
    this.#layerSeconds.observe(durationMs / 1000, "apply", state);
    this.#received.add(bytes, "apply");
  }

  onCollected(result: { readonly freed: number; readonly durationMs: number } | undefined): void {
    this.#gc.add(1, result === undefined ? "failed" : "done");
    if (result === undefined) return;
    this.#gcSeconds.observe(result.durationMs / 1000);
    this.#gcFreed.add(result.freed);
  }
}

/** Names that dashboards know: https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics */
function addProcess(registry: MetricRegistry): void {
  registry.counterOf(
    "process_cpu_seconds_total",
    "User and system time of this process",
    () => processNumbers().cpuSeconds,
  );
  const gauges: readonly (readonly [
    name: string,
    help: string,
    read: (n: ReturnType<typeof processNumbers>) => number,
  ])[] = [
    ["process_resident_memory_bytes", "Resident memory", (n) => n.residentBytes],
    ["process_virtual_memory_bytes", "Virtual memory", (n) => n.virtualBytes],
    ["process_open_fds", "Open file descriptors", (n) => n.openFiles],
    ["process_max_fds", "Limit of open file descriptors", (n) => n.maxFiles],
    ["process_threads", "Threads", (n) => n.threads],
    ["process_start_time_seconds", "When it was started, since 1970", (n) => n.startedSeconds],
  ];
  for (const [name, help, read] of gauges) registry.gauge(name, help, [], () => [[read(processNumbers())]]);
  registry.gauge("nodejs_heap_used_bytes", "Used heap of the main thread", [], () => [
    [process.memoryUsage().heapUsed],
  ]);
}
