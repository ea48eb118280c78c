/** Daemons for tests: in this process around a snapshotter in memory, or as a program of their own. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createLog } from "../../log/index.ts";
import { RpcClient } from "../../rpc/index.ts";
import type { ServiceManager } from "../../sys/index.ts";
import { type Config, Daemon, defaultConfig } from "../index.ts";
import { healthMethods, snapshotsMethods } from "../services/messages.ts";
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

export async function startTestDaemon(changes: Partial<Config> = {}, manager: ServiceManager = NO_MANAGER) {
  const directory = mkdtempSync(join(tmpdir(), "shale-daemon-"));
  const config = testConfig(directory, changes);
  const snapshotter = memorySnapshotter();
  const lines: string[] = [];
  const log = createLog({ level: "debug", json: true, write: (line) => lines.push(line), now: () => new Date() });
  const parts = { openSnapshotter: async () => snapshotter };
  const daemon = await Daemon.start(config, { version: "1.2.3", log, manager, parts }).catch((error: unknown) => {
    rmSync(directory, { recursive: true });
    throw error;
  });
  const client = new RpcClient(config.address);
  return {
    ...{ directory, config, daemon, snapshotter, client },
    log: () => lines.map((line) => JSON.parse(line) as Record<string, unknown>),
    snapshots: snapshotsMethods(),
    health: healthMethods(),
    async [Symbol.asyncDispose]() {
      client[Symbol.dispose]();
      await daemon.close();
      rmSync(directory, { recursive: true });
    },
  };
}
