/**
 * The daemon for containerd: the snapshots, diff and health services on a unix socket, with metrics, probes and logs.
 *
 * Guarantees
 * - A kill at any moment loses nothing and disturbs no container: state is the store's, mounts are the kernel's.
 * - Errors reach containerd with the code that it branches on, through one table (rpc/status.ts).
 * - No log line and no metric has a secret; every limit is in docs/limits.md or in the configuration.
 *
 * Decides nothing about snapshots and layers: that is `snapshotter/`. Use: docs/daemon.md.
 */
export {
  type CheckReport,
  checkMachine,
  type ContainerdVersion,
  containerdLines,
  type Finding,
  parseContainerdVersion,
} from "./check/index.ts";
export { type Config, defaultConfig, formatConfig, parseConfig } from "./config/index.ts";
export { Daemon, type DaemonOptions, type DaemonParts, LevelSwitch } from "./daemon.ts";
