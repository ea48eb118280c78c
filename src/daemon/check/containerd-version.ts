/** What containerd's releases can do for a proxy plugin. From its release notes and sources; 1.6.20 and 2.1.9 were run. Pure. */

export interface ContainerdVersion {
  readonly major: number;
  readonly minor: number;
  readonly patch: number;
}

/** From "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", "v2.1.9" and the like. */
export function parseContainerdVersion(text: string): ContainerdVersion | undefined {
  const match = /(?:^|\s)v?(\d{1,3})\.(\d{1,3})\.(\d{1,3})/.exec(text);
  if (match === null) return undefined;
  return { major: Number(match[1]), minor: Number(match[2]), patch: Number(match[3]) };
}

export function formatContainerdVersion({ major, minor, patch }: ContainerdVersion): string {
  return `${major}.${minor}.${patch}`;
}

function atLeast(version: ContainerdVersion, major: number, minor: number, patch: number): boolean {
  const order = version.major - major || version.minor - minor || version.patch - patch;
  return order >= 0;
}

export interface ContainerdAbilities {
  /** Proxy plugins of type "diff"; an older one panics at its start on seeing one. */
  readonly diffPlugin: boolean;
  /** `exports` of a proxy plugin is read: by CRI for the image file system. */
  readonly exports: boolean;
  /** The transfer service needs an unpack_config for each snapshotter that is not the default. */
  readonly transfer: boolean;
  /** CRI pulls through the transfer service, which passes the image's name on if the plugin's exports say so. */
  readonly remoteByTransfer: boolean;
  /** Mounts of user namespaces: capability "remap-ids". */
  readonly remapIds: boolean;
  /** The version that its configuration file is written in. */
  readonly configVersion: 2 | 3;
}

export function abilitiesOf(version: ContainerdVersion): ContainerdAbilities {
  const two = version.major >= 2;
  return {
    diffPlugin: atLeast(version, 1, 7, 4),
    exports: two || atLeast(version, 1, 7, 16) || (version.minor === 6 && atLeast(version, 1, 6, 32)),
    transfer: atLeast(version, 1, 7, 0),
    remoteByTransfer: atLeast(version, 2, 1, 0),
    remapIds: two || atLeast(version, 1, 7, 23),
    configVersion: two ? 3 : 2,
  };
}
