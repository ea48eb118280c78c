/**
 * A container as podman's database has it. podman tells less, and later: config.dump, which its restore of an archive needs whole, it
 * writes only when it exports, and then packs all of CRIU's images too (2.3 of 3 s for 1 GiB of memory, also when they go nowhere); and
 * to be asked for a container's directories costs 70 ms, a sixth of a checkpoint.
 *
 * It is podman's private matter, so nothing is guessed: where the database, the configuration or the mounts are not exactly of the kind
 * that is known here, the answer is undefined, and podman has to be asked.
 *
 * Facts: podman 5, libpod/sqlite_state*.go (db.sql in the storage's root, schema 1, ContainerConfig.JSON, ContainerState.JSON),
 * libpod/container.go (ContainerConfig, ContainerState), libpod/define/annotations.go, and libpod/container_internal_common.go,
 * prepareCheckpointExport(): config.dump is the configuration without the alias that a container has on each network by its
 * id, spec.dump is the bundle's config.json.
 */
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { findFile, type MountEntry } from "../../sys/index.ts";
import { isObject, type Json, overlayDirectories } from "./engine.ts";

const SCHEMA = 1;
/** Of an id, as podman abbreviates it. */
const SHORT_ID = 12;
/** Another podman may be writing. */
const BUSY_MS = 2000;
/** libpod/define/containerstate.go: ContainerStateRunning. */
const RUNNING = 3;
/** Of a container that goes away with its processes: "TRUE". */
const AUTO_REMOVE = "io.podman.annotations.autoremove";

/** Where podman mounts a container's root: GRAPHROOT/overlay/LAYER/merged. */
const MERGED = /^(\/.+)\/overlay\/[^/]+\/merged$/;

/** A layer's own directory, below GRAPHROOT. */
const LAYER = /^\/overlay\/[^/\\]+\/diff$/;

/** Numbers that JavaScript can't keep, in JSON. */
const LARGE_NUMBER = /[:,[]\s*-?\d{16,}/;

/** A running container without volumes of podman's own. */
export interface PodmanRecord {
  readonly id: string;
  readonly bundle: string;
  /** The OCI runtime that it was made with. */
  readonly runtime: string;
  /** Of its overlay: upper directory, and lower directories, uppermost first. */
  readonly upper: string;
  readonly lower: readonly string[];
  /** What config.dump has to say. */
  readonly config: Uint8Array;
}

/**
 * The running container of this name or whole id, by the database of the one storage that has containers mounted. `mounts` are those
 * of this process. Undefined where anything of it can't be told for sure: also where it has volumes, does not run, or goes
 * away with its processes.
 */
export function findPodmanRecord(name: string, mounts: readonly MountEntry[]): PodmanRecord | undefined {
  const merged = mounts.filter((mount) => mount.type === "overlay" && MERGED.test(mount.mountPoint));
  const [root, ...others] = new Set(merged.map(({ mountPoint }) => MERGED.exec(mountPoint)![1]!));
  if (root === undefined || others.length > 0) return undefined;
  const rows = query(
    join(root, "db.sql"),
    `SELECT c.ID AS id, c.JSON AS config, s.JSON AS state FROM ContainerConfig c JOIN ContainerState s ON s.ID = c.ID
      WHERE (c.ID = ?1 OR c.Name = ?1) AND (SELECT GraphRoot = ?2 AND GraphDriver = 'overlay' FROM DBConfig)`,
    [name, root],
  );
  if (rows?.length !== 1) return undefined;
  const [{ id, config: text, state: stateText }] = rows as [Json];
  if (typeof id !== "string" || typeof text !== "string" || typeof stateText !== "string") return undefined;
  const [config, state] = [parseObject(text), parseObject(stateText)];
  const bundle = join(root, "overlay-containers", id, "userdata");
  if (config === undefined || state === undefined || state.state !== RUNNING || !isPlain(config)) return undefined;
  const dump = configDump(text, config, id, bundle);
  const place = merged.findLast(({ mountPoint }) => mountPoint === state.mountPoint);
  if (dump === undefined || place === undefined || typeof config.runtime !== "string") return undefined;
  const { upper, lower } = overlayDirectories(place.superOptions, name);
  // What is relative, escaped, of another storage, or a mount that goes away with the container's (mapped ids) is left to podman.
  const isLayer = (path: string) => path.startsWith(`${root}/`) && LAYER.test(path.slice(root.length));
  if (upper !== join(dirname(place.mountPoint), "diff") || !lower.every(isLayer)) return undefined;
  return { id, bundle, runtime: config.runtime, upper, lower, config: dump };
}

/** What config.dump has to say of the container whose bundle this is; undefined where that can't be told for sure. */
export function readPodmanConfig(id: string, bundle: string): Uint8Array | undefined {
  // GRAPHROOT/overlay-containers/ID/userdata
  const path = join(dirname(dirname(dirname(bundle))), "db.sql");
  const text = query(path, "SELECT JSON AS config FROM ContainerConfig WHERE ID = ?1", [id])?.[0]?.config;
  if (typeof text !== "string") return undefined;
  const config = parseObject(text);
  return config && configDump(text, config, id, bundle);
}

/** Whether an overlay of an image is all that a container has: neither volumes nor a root of its own, and it stays when it ends. */
function isPlain(config: Json): boolean {
  const { rootfsImageID: image, rootfs = "", namedVolumes, spec } = config;
  const volumes = Array.isArray(namedVolumes) ? namedVolumes.length : namedVolumes;
  if (typeof image !== "string" || image === "" || rootfs !== "" || volumes || !isObject(spec)) return false;
  const { annotations = {} } = spec;
  return isObject(annotations) && (annotations[AUTO_REMOVE] ?? "FALSE") === "FALSE";
}

function configDump(text: string, config: Json, id: string, bundle: string): Uint8Array | undefined {
  if (config.id !== id || config.staticDir !== bundle) return undefined;
  // podman refuses to export those, and says why.
  if (Array.isArray(config.Dependencies) && config.Dependencies.length > 0) return undefined;
  if (config.newNetworks === undefined) return Buffer.from(text);
  const networks = withoutAlias(config.newNetworks, id.slice(0, SHORT_ID));
  if (networks === undefined || LARGE_NUMBER.test(text)) return undefined;
  return Buffer.from(JSON.stringify({ ...config, newNetworks: networks }));
}

/** Rows of a database of the known schema, blobs as text; undefined where there is none (BoltDB, or one elsewhere), or it can't be read. */
function query(path: string, sql: string, parameters: readonly string[]): Json[] | undefined {
  if (findFile(path)?.kind !== "file") return undefined;
  try {
    using database = new DatabaseSync(path, { readOnly: true, timeout: BUSY_MS });
    if (database.prepare("SELECT SchemaVersion FROM DBConfig").get()?.SchemaVersion !== SCHEMA) return undefined;
    const rows = database.prepare(sql).all(...parameters);
    return rows.map((row) => Object.fromEntries(Object.entries(row).map(([key, value]) => [key, textOfColumn(value)])));
  } catch (error) {
    // Other tables, or a lock that somebody keeps: podman itself can be asked for all of it.
    if (error instanceof Error && "code" in error && error.code === "ERR_SQLITE_ERROR") return undefined;
    throw error;
  }
}

/** podman gives SQLite its JSON as bytes. */
function textOfColumn(value: unknown): unknown {
  return value instanceof Uint8Array ? Buffer.from(value).toString() : value;
}

function parseObject(text: string): Json | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

function withoutAlias(networks: unknown, alias: string): Json | undefined {
  if (!isObject(networks)) return undefined;
  const kept: Record<string, unknown> = {};
  for (const [name, network] of Object.entries(networks)) {
    if (!isObject(network)) return undefined;
    const { aliases = [], ...rest } = network;
    if (!Array.isArray(aliases)) return undefined;
    const others = aliases.filter((other) => other !== alias);
    kept[name] = others.length > 0 ? { ...rest, aliases: others } : rest;
  }
  return kept;
}
