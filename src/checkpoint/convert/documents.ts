/**
 * Metadata that one engine has and another needs. Nothing that is known is taken out: keys are added to what is there, and what
 * has to be made up is said in a notice.
 */
import { decodeJson, type JsonNode } from "../../oci/index.ts";
import { decodeSpec, MAX_METADATA } from "../show/index.ts";

const MAX_LIST = 100_000;

/**
 * config.dump for CRI-O and containerd: checkpointctl lib/metadata.go, ContainerConfig. podman's own config has most of its keys;
 * it stays as it is beside those that are added.
 */
export function criConfig(config: Uint8Array): Uint8Array {
  const root = decodeJson(config, "config.dump", MAX_METADATA);
  const name = optional(root, "rootfsImageName");
  const added: Readonly<Record<string, string | undefined>> = {
    rootfsImage: optional(root, "rawImageName") ?? name,
    rootfsImageRef: optional(root, "rootfsImageID"),
    rootfsImageName: name,
  };
  const missing = Object.entries(added).filter(([key, value]) => value !== undefined && root.get(key).isAbsent);
  if (missing.length === 0) return config;
  return encode({ ...objectOf(root), ...Object.fromEntries(missing) });
}

/** Whether a config.dump is podman's complete one, which its restore decodes: it has the runtime's static directory. */
export function isPodmanConfig(config: Uint8Array): boolean {
  const root = decodeJson(config, "config.dump", MAX_METADATA);
  return !root.get("staticDir").isAbsent || !root.get("rootfsImageID").isAbsent;
}

/** bind.mounts of CRI-O from the runtime spec. What a source is (file or directory) is not in a spec. */
export function bindMounts(spec: Uint8Array): { readonly bytes: Uint8Array; readonly unknown: number } {
  const mounts = decodeSpec(spec).mounts.filter(({ type, source }) => type === "bind" && source !== undefined);
  return { bytes: encode([]), unknown: mounts.length };
}

/** How many binds a bind.mounts names. */
export function countBindMounts(bytes: Uint8Array): number {
  const value: unknown = JSON.parse(Buffer.from(bytes).toString("utf8"));
  return Array.isArray(value) ? value.length : 0;
}

/** status.dump of containerd: the CRI ContainerStatus, cri-api runtime/v1, as far as config and spec tell. */
export function containerStatus(config: Uint8Array | undefined, spec: Uint8Array | undefined): Uint8Array {
  const root = config === undefined ? undefined : decodeJson(config, "config.dump", MAX_METADATA);
  const specification = spec === undefined ? undefined : decodeJson(spec, "spec.dump", MAX_METADATA);
  const text = (key: string) => (root === undefined ? undefined : optional(root, key));
  const created = Date.parse(text("createdTime") ?? "");
  const mounts = specification?.get("mounts").list(MAX_LIST) ?? [];
  return encode({
    id: text("id"),
    metadata: { name: text("name") },
    state: 1, // CONTAINER_RUNNING
    ...(Number.isNaN(created) ? {} : { created_at: created * 1e6 }),
    image: { image: text("rootfsImageName") },
    image_ref: text("rootfsImageRef") ?? text("rootfsImageID"),
    labels: {},
    annotations: specification === undefined ? {} : { ...specification.get("annotations").stringMap() },
    mounts: mounts
      .filter((mount) => optional(mount, "type") === "bind")
      .map((mount) => ({ container_path: optional(mount, "destination"), host_path: optional(mount, "source") })),
  });
}

function optional(node: JsonNode, key: string): string | undefined {
  const { value } = node.get(key);
  return typeof value === "string" && value !== "" ? value : undefined;
}

function objectOf(root: JsonNode): object {
  return typeof root.value === "object" && root.value !== null ? root.value : {};
}

function encode(value: unknown): Uint8Array {
  return Buffer.from(JSON.stringify(value));
}
