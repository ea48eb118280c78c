/**
 * containerd of the host (1.6 on Debian bookworm) with its default, the overlayfs snapshotter: layers are unpacked into
 * directories.
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run, startDaemon } from "../process.ts";
import type { Attempt, Contestant } from "./contestant.ts";

export const containerdOverlayfs: Contestant = {
  id: "containerd-overlayfs",
  title: "containerd 1.6, overlayfs",
  version: async () => (await run(["containerd", "--version"])).trim(),
  async prepare({ signal }, directory): Promise<Attempt> {
    const socket = join(directory, "c.sock");
    const config = join(directory, "config.toml");
    writeFileSync(
      config,
      `version = 2
root = "${directory}/root"
state = "${directory}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "${socket}"
[ttrpc]
address = "${socket}.ttrpc"
`,
    );
    const ctr = (...args: string[]) => run(["ctr", "-a", socket, ...args], { signal });
    const daemon = await startDaemon(["containerd", "-c", config], {
      signal,
      logFile: join(directory, "containerd.log"),
      ready: () =>
        run(["ctr", "-a", socket, "version"]).then(
          () => true,
          () => false,
        ),
    });
    const mounted: string[] = [];
    return {
      async pull({ name, reference }) {
        const mountPoint = join(directory, `mnt-${name}`);
        mkdirSync(mountPoint);
        await ctr("image", "pull", "--plain-http", "--snapshotter", "overlayfs", reference);
        await ctr("image", "mount", "--snapshotter", "overlayfs", reference, mountPoint);
        mounted.push(mountPoint);
        return mountPoint;
      },
      async [Symbol.asyncDispose]() {
        for (const mountPoint of mounted) await run(["umount", mountPoint]);
        await daemon[Symbol.asyncDispose]();
      },
    };
  },
};
