/**
 * The lines that containerd's configuration needs, by its version. contrib/containerd/ has them as files, made from here. Pure.
 *
 * 1.x has the CRI plugin as one, 2.x split it. Listing any unpack_config replaces the default, so overlayfs is listed too.
 */
import { abilitiesOf, type ContainerdVersion } from "./containerd-version.ts";

export interface LinesOptions {
  /** Of the snapshotter in containerd; stored with images, so changing it later orphans what it has. */
  readonly name: string;
  readonly address: string;
  readonly root: string;
  /** The daemon fetches layers itself. */
  readonly remote: boolean;
  /** "linux/amd64". */
  readonly platform: string;
  /** Kubernetes is to use it for its pods. */
  readonly cri: boolean;
}

export function differName(name: string): string {
  return `${name}-diff`;
}

/** Sections in TOML, without the `version` line that the file has already. */
export function containerdLines(version: ContainerdVersion, options: LinesOptions): string {
  const abilities = abilitiesOf(version);
  const { name, address, root, remote, platform, cri } = options;
  const differ = differName(name);
  const lines: string[] = [`[proxy_plugins.${name}]`, '  type = "snapshot"', `  address = "${address}"`];
  if (abilities.remapIds) lines.push('  capabilities = ["remap-ids"]');
  if (abilities.exports) {
    lines.push(`  [proxy_plugins.${name}.exports]`, `    root = "${root}"`);
    if (abilities.remoteByTransfer && remote) lines.push('    enable_remote_snapshot_annotations = "true"');
  }
  if (abilities.diffPlugin) {
    lines.push(
      ...["", `[proxy_plugins.${differ}]`, '  type = "diff"', `  address = "${address}"`],
      ...["", '[plugins."io.containerd.service.v1.diff-service"]', `  default = ["${differ}", "walking"]`],
    );
  }
  if (abilities.transfer) {
    const unpack = (snapshotter: string, differs: string) => [
      ...['  [[plugins."io.containerd.transfer.v1.local".unpack_config]]', `    platform = "${platform}"`],
      ...[`    snapshotter = "${snapshotter}"`, `    differ = "${differs}"`],
    ];
    lines.push("", '[plugins."io.containerd.transfer.v1.local"]', ...unpack("overlayfs", "walking"));
    lines.push(...unpack(name, abilities.diffPlugin ? differ : "walking"));
  }
  if (cri) lines.push(...criLines(version, options, abilities.remoteByTransfer));
  return `${lines.join("\n")}\n`;
}

function criLines({ major }: ContainerdVersion, { name, remote }: LinesOptions, byTransfer: boolean): string[] {
  const annotations = remote && !byTransfer ? ["  disable_snapshot_annotations = false"] : [];
  const section =
    major >= 2 ? '[plugins."io.containerd.cri.v1.images"]' : '[plugins."io.containerd.grpc.v1.cri".containerd]';
  return ["", section, `  snapshotter = "${name}"`, ...annotations];
}
