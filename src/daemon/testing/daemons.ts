/** Daemons for tests: in this process around a snapshotter in memory, or as a program of their own. */
import { mkdtempSync, rmSync } from "node:fs";
import { join } from "node:path";
import { createLog } from "../../log/index.ts";
import { RpcClient } from "../../rpc/index.ts";
import { PATIENT } from "../../rpc/testing/patient.ts";
import { mountInfo, type ServiceManager, unmount } from "../../sys/index.ts";
import { type Config, Daemon, type DaemonOptions, defaultConfig } from "../index.ts";
import { diffMethods, healthMethods, snapshotsMethods } from "../services/messages.ts";
import { memorySnapshotter } from "./memory-snapshotter.ts";

export const NO_MANAGER: ServiceManager = { present: false, watchdogMs: undefined, notify: () => undefined };

/** A configuration below `directory`, without the network. */
export function testConfig(directory: string, changes: Partial<Config> = {}): Config {
  const config = defaultConfig();
  return {
    ...config,
    root: join(directory, "root"),
    address: join(directory, "shale.sock"),
    remote: { ...config.remote, enabled: false },
    containerd: { address: join(directory, "containerd.sock"), root: join(directory, "containerd") },
    ...changes,
  };
}

/** Around a snapshotter in memory. */
export async function startTestDaemon(changes: Partial<Config> = {}, manager: ServiceManager = NO_MANAGER) {
  const snapshotter = memorySnapshotter();
  const parts = { openSnapshotter: async () => snapshotter };
  return { ...(await start(testDirectory(), changes, { manager, parts })), snapshotter };
}

/** With a store; in `directory`, which then stays, or in one of its own. */
export function startStoreDaemon(changes: Partial<Config> = {}, directory?: string) {
  return directory === undefined
    ? start(testDirectory(), changes)
    : start({ path: directory, remove: () => undefined }, changes);
}

/** On a disk, so that overlays can have their upper directories there. */
function testDirectory() {
  const path = mkdtempSync("/var/tmp/shale-daemon-");
  return { path, remove: () => rmSync(path, { recursive: true }) };
}

async function start(
  directory: { readonly path: string; readonly remove: () => void },
  changes: Partial<Config>,
  options: Partial<Pick<DaemonOptions, "manager" | "parts">> = {},
) {
  const config = testConfig(directory.path, changes);
  const lines: string[] = [];
  const log = createLog({ level: "debug", json: true, write: (line) => lines.push(line), now: () => new Date() });
  const daemon = await Daemon.start(config, { version: "1.2.3", log, manager: NO_MANAGER, ...options }).catch(
    (error: unknown) => {
      directory.remove();
      throw error;
    },
  );
  const client = new RpcClient(config.address, PATIENT);
  return {
    ...{ directory: directory.path, config, daemon, client },
    log: () => lines.map((line) => JSON.parse(line) as Record<string, unknown>),
    snapshots: snapshotsMethods(),
    diff: diffMethods(),
    health: healthMethods(),
    async [Symbol.asyncDispose]() {
      client[Symbol.dispose]();
      await daemon.close();
      unmountBelow(config.root);
      directory.remove();
    },
  };
}

/** What the daemon has mounted outlives it: that is its purpose. */
function unmountBelow(root: string): void {
  for (const { mountPoint } of mountInfo().toReversed()) {
    if (mountPoint.startsWith(`${root}/`)) unmount(mountPoint, { lazy: true });
  }
}
