import { FormatError } from "../errors/index.ts";
import { readPlatform } from "./descriptor.ts";
import { type DiffId, parseDiffId } from "./digest.ts";
import { decodeJson, type JsonNode } from "./json.ts";
import { MAX_CONFIG_LIST, MAX_CONFIG_SIZE, MAX_HISTORY, MAX_LAYERS } from "./limits.ts";
import type { Manifest } from "./manifest.ts";
import type { Platform } from "./platform.ts";

/** How to run the image: config.md, "config". Absent members are undefined, absent lists empty. */
export interface RunConfig {
  readonly user?: string;
  readonly workingDir?: string;
  readonly stopSignal?: string;
  /** "NAME=value" each. */
  readonly env: readonly string[];
  readonly entrypoint: readonly string[];
  readonly cmd: readonly string[];
  readonly volumes: readonly string[];
  readonly exposedPorts: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
}

/** One build step. Steps with `emptyLayer` left no layer; the others stand for the layers in order. */
export interface HistoryEntry {
  readonly created?: string;
  readonly createdBy?: string;
  readonly author?: string;
  readonly comment?: string;
  readonly emptyLayer: boolean;
}

/** OCI config.md and Docker's image JSON. The bytes themselves are kept beside it; unknown members are theirs. */
export interface ImageConfig {
  readonly platform: Platform;
  readonly created?: string;
  readonly author?: string;
  readonly config: RunConfig;
  /** Digests of the uncompressed layers, lowest first. */
  readonly diffIds: readonly DiffId[];
  readonly history: readonly HistoryEntry[];
}

/** FormatError with the JSON path as field when malformed or over a limit. */
export function decodeImageConfig(bytes: Uint8Array): ImageConfig {
  const root = decodeJson(bytes, "image config", MAX_CONFIG_SIZE);
  const rootfs = root.get("rootfs");
  if (rootfs.isAbsent) throw rootfs.fail("is missing");
  const type = rootfs.get("type").string();
  if (type !== "layers") {
    throw rootfs.get("type").fail(`must be "layers": current value is ${JSON.stringify(type.slice(0, 40))}`);
  }
  const diffIds = rootfs
    .get("diff_ids")
    .list(MAX_LAYERS)
    .map((node) => parseDiffId(node.string(), node.format, node.path));
  return {
    platform: readPlatform(root),
    ...optional("created", root.get("created")),
    ...optional("author", root.get("author")),
    config: readRunConfig(root.get("config")),
    diffIds,
    history: root.get("history").list(MAX_HISTORY).map(readHistory),
  };
}

/** FormatError unless the config names one diffID for each layer of the manifest. */
export function checkLayerCount(manifest: Manifest, config: ImageConfig): void {
  if (manifest.layers.length !== config.diffIds.length) {
    throw new FormatError(
      "image config",
      "rootfs.diff_ids",
      `has ${config.diffIds.length} entries, the manifest has ${manifest.layers.length} layers`,
    );
  }
}

function readRunConfig(node: JsonNode): RunConfig {
  if (node.isAbsent) {
    return { env: [], entrypoint: [], cmd: [], volumes: [], exposedPorts: [], labels: Object.create(null) };
  }
  return {
    ...optional("user", node.get("User")),
    ...optional("workingDir", node.get("WorkingDir")),
    ...optional("stopSignal", node.get("StopSignal")),
    env: node.get("Env").strings(MAX_CONFIG_LIST),
    entrypoint: node.get("Entrypoint").strings(MAX_CONFIG_LIST),
    cmd: node.get("Cmd").strings(MAX_CONFIG_LIST),
    volumes: node.get("Volumes").keys(),
    exposedPorts: node.get("ExposedPorts").keys(),
    labels: node.get("Labels").stringMap(),
  };
}

function readHistory(node: JsonNode): HistoryEntry {
  return {
    ...optional("created", node.get("created")),
    ...optional("createdBy", node.get("created_by")),
    ...optional("author", node.get("author")),
    ...optional("comment", node.get("comment")),
    emptyLayer: node.get("empty_layer").optionalBoolean() ?? false,
  };
}

/** `{ key: text }`, or nothing where the text is absent or empty. */
function optional<K extends string>(key: K, node: JsonNode): { readonly [P in K]?: string } {
  const value = node.optionalString();
  return (value ? { [key]: value } : {}) as { readonly [P in K]?: string };
}
