/** containers/storage (podman of Debian sid) with its overlay driver: layers are unpacked into directories. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { enterPeerTree } from "../peer-tree.ts";
import type { Attempt, Contestant } from "./contestant.ts";
import { peerVersion } from "./peer-version.ts";

const PODMAN = ["podman", "--root", "/share/root", "--runroot", "/run/storage", "--storage-driver", "overlay"];

export const podman: Contestant = {
  id: "podman",
  title: "containers/storage (podman)",
  version: () => peerVersion("podman"),
  async prepare({ signal }, directory): Promise<Attempt> {
    const share = join(directory, "share");
    mkdirSync(share);
    const tree = await enterPeerTree(share, ["sleep", "infinity"], { signal });
    return {
      async pull({ reference }) {
        await tree.exec([...PODMAN, "pull", "-q", "--tls-verify=false", reference], { signal });
        return tree.outside((await tree.exec([...PODMAN, "image", "mount", reference], { signal })).trim());
      },
      [Symbol.asyncDispose]: () => tree[Symbol.asyncDispose](),
    };
  },
};
