/** Options that several commands share, so that they read and mean the same everywhere. */
import type { OptionTable } from "../command.ts";

export const PLATFORM = {
  type: "string",
  value: "OS/ARCH",
  defaultText: "this machine's",
  help: "Platform to choose from a multi-platform image, as linux/arm64 or linux/arm/v7",
} as const;

/** How registries are reached. */
export const REGISTRY = {
  "tls-verify": { type: "boolean", default: true, help: "Verify certificates; false also allows plain HTTP" },
  "auth-file": {
    type: "string",
    value: "FILE",
    env: "REGISTRY_AUTH_FILE",
    defaultText: "$DOCKER_CONFIG/config.json or ~/.docker/config.json",
    completes: "file",
    help: "Credentials, in the form of docker's config.json",
  },
  "hosts-dir": {
    type: "string",
    value: "DIR",
    defaultText: "/etc/containerd/certs.d",
    completes: "directory",
    help: "Directory of hosts.toml files: mirrors, certificates and headers per registry",
  },
} as const satisfies OptionTable;
