/**
 * A container's configuration from podman's database. podman writes config.dump, which its restore of an archive needs whole, only when
 * it exports, and then packs all of CRIU's images too: 2.3 of 3 s for 1 GiB of memory, also when they go nowhere.
 *
 * It is podman's private matter, so nothing is guessed: where the database or the configuration is not exactly of the kind that is
 * known here, the answer is undefined, and podman has to export.
 *
 * Facts: podman 5, libpod/sqlite_state*.go (db.sql in the storage's root, schema 1, ContainerConfig.JSON) and
 * libpod/container_internal_common.go, prepareCheckpointExport(): config.dump is the configuration without the alias that a container
 * has on each network by its id, spec.dump is the bundle's config.json.
 */
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { findFile } from "../../sys/index.ts";
import { isObject, type Json } from "./engine.ts";

const SCHEMA = 1;
/** Of an id, as podman abbreviates it. */
const SHORT_ID = 12;
/** Another podman may be writing. */
const BUSY_MS = 2000;

/** Numbers that JavaScript can't keep, in JSON. */
const LARGE_NUMBER = /[:,[]\s*-?\d{16,}/;

/** What config.dump has to say of the container whose bundle this is; undefined where that can't be told for sure. */
export function readPodmanConfig(id: string, bundle: string): Uint8Array | undefined {
  // GRAPHROOT/overlay-containers/ID/userdata
  const path = join(dirname(dirname(dirname(bundle))), "db.sql");
  if (findFile(path)?.kind !== "file") return undefined; // BoltDB, or a database elsewhere
  const text = readRow(path, id);
  const config = text === undefined ? undefined : parseObject(text);
  if (text === undefined || config?.id !== id || config.staticDir !== bundle) return undefined;
  // podman refuses to export those, and says why.
  if (Array.isArray(config.Dependencies) && config.Dependencies.length > 0) return undefined;
  if (config.newNetworks === undefined) return Buffer.from(text);
  const networks = withoutAlias(config.newNetworks, id.slice(0, SHORT_ID));
  if (networks === undefined || LARGE_NUMBER.test(text)) return undefined;
  return Buffer.from(JSON.stringify({ ...config, newNetworks: networks }));
}

function readRow(path: string, id: string): string | undefined {
  try {
    using database = new DatabaseSync(path, { readOnly: true, timeout: BUSY_MS });
    if (database.prepare("SELECT SchemaVersion FROM DBConfig").get()?.SchemaVersion !== SCHEMA) return undefined;
    const json = database.prepare("SELECT JSON FROM ContainerConfig WHERE ID = ?").get(id)?.JSON;
    if (typeof json === "string") return json;
    return json instanceof Uint8Array ? Buffer.from(json).toString() : undefined;
  } catch (error) {
    // Other tables, or a lock that somebody keeps: podman itself can be asked for all of it.
    if (error instanceof Error && "code" in error && error.code === "ERR_SQLITE_ERROR") return undefined;
    throw error;
  }
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
