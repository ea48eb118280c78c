/**
 * containerd of Debian sid (2.1) with the EROFS snapshotter and differ: every layer becomes one EROFS image by mkfs.erofs,
 * a mount is an overlay of them. Configured as containerd's docs/snapshotters/erofs.md recommends for speed
 * (`--sort=none` saves mkfs.erofs a copy of the data).
 */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { enterPeerTree } from "../peer-tree.ts";
import type { Attempt, Contestant } from "./contestant.ts";
import { peerVersion } from "./peer-version.ts";

const CONFIG = `version = 3
root = "/share/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.service.v1.diff-service"]
default = ["erofs", "walking"]
[plugins."io.containerd.differ.v1.erofs"]
mkfs_options = ["-T0", "--mkfs-time", "--sort=none"]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "erofs"
differ = "erofs"
`;

export const containerdErofs: Contestant = {
  id: "containerd-erofs",
  title: "containerd 2.1, erofs",
  version: () => peerVersion("containerd", "mkfs.erofs"),
  async prepare({ signal }, directory): Promise<Attempt> {
    const share = join(directory, "share");
    mkdirSync(share);
    writeFileSync(join(share, "config.toml"), CONFIG);
    // The snapshotter mounts layers itself: the mount command must run in the daemon's own mount namespace.
    const tree = await enterPeerTree(share, ["containerd", "-c", "/share/config.toml"], {
      signal,
      ready: ({ exec }) =>
        exec(["ctr", "version"]).then(
          () => true,
          () => false,
        ),
    });
    return {
      async pull({ name, reference }) {
        const mountPoint = `/share/mnt-${name}`;
        mkdirSync(join(share, `mnt-${name}`));
        await tree.exec(["ctr", "image", "pull", "--plain-http", "--snapshotter", "erofs", reference], { signal });
        await tree.exec(["ctr", "image", "mount", "--snapshotter", "erofs", reference, mountPoint], { signal });
        return tree.outside(mountPoint);
      },
      [Symbol.asyncDispose]: () => tree[Symbol.asyncDispose](),
    };
  },
};
