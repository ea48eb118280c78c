/**
 * The Debian sid tree of ../shared/peers/peers.sh: newer peers than the host's, in mount and pid namespaces of their own.
 *
 * Guarantees: what runs inside sees `share` of the host as /share, the host's network and the host's file systems; all of
 * it, with its mounts, is gone when the disposal resolves.
 */
import { existsSync, mkdirSync } from "node:fs";
import { join, relative } from "node:path";
import { delay } from "../src/async/index.ts";
import { ShaleError } from "../src/errors/index.ts";
import { childrenOf, type RunOptions, run, startDaemon } from "./process.ts";

export const PEERS_SCRIPT = join(import.meta.dirname, "../../shared/peers/peers.sh");

/** The tree itself; nothing may be written into it. */
export const PEER_TREE = join(process.env.PEERS_ROOT ?? "/var/tmp/shale-peers", "sid");

export interface PeerTree extends AsyncDisposable {
  /** The path inside for a host path below `share`. */
  inside(hostPath: string): string;
  /** The host's way to a path as mounted inside: through procfs, which follows the mounts of that namespace. */
  outside(insidePath: string): string;
  exec(argv: readonly string[], options?: RunOptions): Promise<string>;
}

/** Makes the tree when it is missing (about 70 s). */
export async function ensurePeerTree(): Promise<void> {
  if (!existsSync(PEERS_SCRIPT)) throw new ShaleError("NOT_FOUND", `Cannot run the peers: ${PEERS_SCRIPT} is missing`);
  await run([PEERS_SCRIPT, "setup"]);
}

/**
 * Starts `argv` inside as the process that holds the namespaces; resolves when `ready` is true.
 * `share` must exist. `argv` ends by SIGKILL at disposal.
 */
export async function enterPeerTree(
  share: string,
  argv: readonly string[],
  options: RunOptions & { readonly ready?: (tree: PeerTree) => Promise<boolean> } = {},
): Promise<PeerTree> {
  mkdirSync(share, { recursive: true });
  let holder = 0;
  const inside = (hostPath: string) => join("/share", relative(share, hostPath));
  const exec = (command: readonly string[], runOptions: RunOptions = {}) =>
    run(["nsenter", "-t", String(holder), "-m", "-p", "-r", "-w", ...command], runOptions);
  const view = { inside, outside: (path: string) => join(`/proc/${holder}/root`, path), exec };
  const { ready, ...runOptions } = options;
  const daemon = await startDaemon([PEERS_SCRIPT, "run", ...argv], {
    ...runOptions,
    env: { ...runOptions.env, PEERS_SHARE: share },
    logFile: `${share}.log`,
    stopSignal: "SIGKILL",
    ready: async (pid) => {
      // peers.sh becomes unshare(1), whose one child is process 1 of the new namespaces; the old root is
      // detached as the last step before argv.
      holder = childrenOf(pid)[0] ?? 0;
      if (holder === 0 || !existsSync(view.outside("/share")) || existsSync(view.outside("/oldroot/proc")))
        return false;
      return ready ? await ready({ ...view, [Symbol.asyncDispose]: async () => {} }) : true;
    },
  });
  return {
    ...view,
    async [Symbol.asyncDispose]() {
      await daemon[Symbol.asyncDispose]();
      // The namespaces' other processes and mounts go after process 1: wait until it is reaped.
      while (existsSync(`/proc/${holder}`)) await delay(5);
    },
  };
}
