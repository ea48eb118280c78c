/** The files of contrib/containerd/: what `shale daemon check` prints, for the defaults. `npm run docs` writes them. Pure. */
import { containerdLines } from "./containerd-lines.ts";
import { abilitiesOf, parseContainerdVersion } from "./containerd-version.ts";

/** By file name: the oldest release that a file is for, and which those are. */
const FILES: Readonly<Record<string, readonly [version: string, releases: string]>> = {
  "1.6.toml": ["1.6.20", "1.6, and 1.7 before 1.7.23. No differ: it stops containerd before 1.7.4 from starting"],
  "1.7.toml": ["1.7.23", "1.7.23 and later of 1.7"],
  "2.0.toml": ["2.0.0", "2.0"],
  "2.1.toml": ["2.1.0", "2.1 and later"],
};

export function contribFiles(): ReadonlyMap<string, string> {
  return new Map(
    Object.entries(FILES).map(([file, [release, releases]]) => {
      const version = parseContainerdVersion(release)!;
      const lines = containerdLines(version, {
        ...{ name: "shale", address: "/run/shale/shale.sock", root: "/var/lib/shale", remote: true },
        ...{ platform: "linux/amd64", cri: false },
      });
      const head = [
        `# shale as a snapshotter of containerd ${releases}.`,
        "# Made by `npm run docs`. For /etc/containerd/conf.d/, imported by config.toml; contrib/README.md.",
      ];
      return [file, `${head.join("\n")}\nversion = ${abilitiesOf(version).configVersion}\n\n${lines}`];
    }),
  );
}
