/** skopeo and umoci of Debian sid: download into an OCI layout, then unpack into one directory. No daemon, no mount. */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { enterPeerTree } from "../peer-tree.ts";
import type { Attempt, Contestant } from "./contestant.ts";
import { peerVersion } from "./peer-version.ts";

export const umoci: Contestant = {
  id: "umoci",
  title: "skopeo + umoci",
  version: () => peerVersion("skopeo", "umoci"),
  async prepare({ signal }, directory): Promise<Attempt> {
    const share = join(directory, "share");
    mkdirSync(share);
    const tree = await enterPeerTree(share, ["sleep", "infinity"], { signal });
    return {
      async pull({ name, reference }) {
        const layout = `/share/oci-${name}:bench`;
        await tree.exec(["skopeo", "copy", "-q", "--src-tls-verify=false", `docker://${reference}`, `oci:${layout}`], {
          signal,
        });
        await tree.exec(["umoci", "unpack", "--image", layout, `/share/bundle-${name}`], { signal });
        return join(share, `bundle-${name}/rootfs`);
      },
      [Symbol.asyncDispose]: () => tree[Symbol.asyncDispose](),
    };
  },
};
