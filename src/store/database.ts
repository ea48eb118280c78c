/**
 * The database: the only mutable metadata of the store. SQLite in WAL mode with synchronous=FULL, so a transaction that
 * returned survives a power cut; several processes may have it open.
 *
 * What is derivable is not here twice: which blobs a layer refers to is read from its own EROFS image. `payloads` is a
 * cache (payload digest -> place); it may lack rows, and never holds a row for a range that is not live.
 */
import { DatabaseSync, type SQLInputValue, type StatementSync } from "node:sqlite";
import { ShaleError } from "../errors/index.ts";
import { recordDatabaseCommit } from "../sys/index.ts";

/** Counted up with every change of the schema; a store with a higher number was written by a newer shale. */
export const SCHEMA_VERSION = 1;
/** PRAGMA application_id: "shal". */
const APPLICATION_ID = 0x7368616c;
/** How long a writer waits for another process's transaction; transactions are short by design. */
const BUSY_TIMEOUT_MS = 30_000;
const BUSY_PAUSE_MS = 5;

const SCHEMA = `
  CREATE TABLE state (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
  ) STRICT;
  INSERT INTO state VALUES ('epoch', 1);

  -- One row a blob file. The layer that wrote it may be gone while others still refer to its payloads.
  CREATE TABLE blobs (
    key     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL UNIQUE,       -- blobs/<id>; the id of the layer that wrote it
    size    INTEGER NOT NULL,           -- bytes of payload area
    removed INTEGER NOT NULL DEFAULT 0  -- 1: nothing refers to it, its file is being removed
  ) STRICT;

  CREATE TABLE layers (
    id             TEXT PRIMARY KEY,    -- layers/<id>, and blobs/<id> if it brought payloads of its own
    diff_id        TEXT NOT NULL,
    tar_size       INTEGER NOT NULL,
    entries        INTEGER NOT NULL,
    content_bytes  INTEGER NOT NULL,    -- sum of file sizes as the tar has them
    own_bytes      INTEGER NOT NULL,    -- payload bytes that this layer brought (its blob)
    shared_bytes   INTEGER NOT NULL,    -- payload bytes found in the store, or earlier in this layer
    inline_bytes   INTEGER NOT NULL,    -- payload bytes inside meta.erofs
    metadata_bytes INTEGER NOT NULL,    -- meta.erofs + tar.headers
    image_sha256   TEXT NOT NULL,       -- of meta.erofs
    recipe_sha256  TEXT NOT NULL,       -- of tar.headers
    notices        TEXT NOT NULL,       -- JSON: what the layer had that was ignored
    committed_at   INTEGER NOT NULL,    -- ms since the epoch
    indexed        INTEGER NOT NULL,    -- 1: its payloads are in the dedupe index
    standalone     INTEGER NOT NULL,    -- 1: its image means the same without layers below
    form           TEXT NOT NULL DEFAULT 'tree', -- or 'archive': a checkpoint in parts, whose image is not for mounting
    toc            TEXT,                -- JSON: where what layers/<id>/toc has was in the blob that was pulled, or NULL
    chunked        INTEGER NOT NULL DEFAULT 0, -- 1: its chunks are in the chunk index
    condemned      INTEGER,             -- epoch in which gc took it out of sight, 0 while its files are removed, or NULL
    damage         TEXT                 -- why check took it out of sight, or NULL
  ) STRICT;
  CREATE UNIQUE INDEX layers_in_sight ON layers (diff_id, form) WHERE condemned IS NULL AND damage IS NULL;
  CREATE INDEX layers_by_diff_id ON layers (diff_id);
  CREATE INDEX layers_to_do ON layers (id) WHERE indexed = 0 OR condemned IS NOT NULL OR damage IS NOT NULL;

  -- Where a layer can be fetched again; newest first.
  CREATE TABLE sources (
    diff_id    TEXT NOT NULL,
    location   TEXT NOT NULL,           -- "docker://host/name", "oci:/dir", ...
    digest     TEXT NOT NULL,           -- of the compressed blob
    media_type TEXT NOT NULL,
    size       INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,
    PRIMARY KEY (diff_id, location)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX sources_by_digest ON sources (digest);

  -- What a layer's tar becomes under an encoder; a cache for manifests that name compressed layers.
  CREATE TABLE encodings (
    diff_id TEXT NOT NULL,
    encoder TEXT NOT NULL,              -- algorithm, settings and version of the library
    digest  TEXT NOT NULL,              -- of the encoded bytes
    size    INTEGER NOT NULL,
    details TEXT NOT NULL DEFAULT '',   -- what else the encoder has to know of it; its own to read
    PRIMARY KEY (diff_id, encoder)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX encodings_by_digest ON encodings (digest);

  CREATE TABLE images (
    name        TEXT PRIMARY KEY,       -- normalised reference
    digest      TEXT NOT NULL,          -- what the name resolved to: a manifest or an index
    media_type  TEXT NOT NULL,
    size        INTEGER NOT NULL,
    source      TEXT NOT NULL,          -- location it came from
    pinned      INTEGER NOT NULL DEFAULT 0,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE image_manifests (
    image    TEXT NOT NULL REFERENCES images (name) ON DELETE CASCADE,
    manifest TEXT NOT NULL REFERENCES manifests (digest),
    PRIMARY KEY (image, manifest)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX image_manifests_by_manifest ON image_manifests (manifest);

  -- Manifests, indexes and configs as received. In here, not in files: an image and its documents come and go in one
  -- transaction (docs/adr/0001).
  CREATE TABLE documents (
    digest     TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    bytes      BLOB NOT NULL
  ) STRICT;

  CREATE TABLE manifests (
    digest     TEXT PRIMARY KEY,
    config     TEXT NOT NULL,           -- digest
    platform   TEXT NOT NULL,
    chain_id   TEXT NOT NULL            -- '' for an image without layers
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE manifest_layers (
    manifest   TEXT NOT NULL REFERENCES manifests (digest) ON DELETE CASCADE,
    position   INTEGER NOT NULL,        -- 0 is the lowest
    diff_id    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    media_type TEXT NOT NULL,
    size       INTEGER NOT NULL,
    -- Of the layer, set with it: lists sum up tens of thousands of these, and joins by digest would take half a second.
    content_bytes INTEGER NOT NULL,
    stored_bytes  INTEGER NOT NULL,     -- own_bytes + metadata_bytes
    PRIMARY KEY (manifest, position)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX manifest_layers_by_diff_id ON manifest_layers (diff_id, stored_bytes);

  -- One EROFS image for a whole chain; derived, can be made again at any time.
  CREATE TABLE merged (
    id           TEXT PRIMARY KEY,      -- merged/<id>
    chain_id     TEXT NOT NULL,
    layers       TEXT NOT NULL,         -- JSON, lowest first: ids of the layers whose blobs it refers to. In sight only while they are
    size         INTEGER NOT NULL,
    image_sha256 TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    condemned    INTEGER                -- as for layers
  ) STRICT, WITHOUT ROWID;

  CREATE UNIQUE INDEX merged_in_sight ON merged (chain_id) WHERE condemned IS NULL;

  CREATE TABLE mounts (
    target     TEXT PRIMARY KEY,        -- absolute path
    image      TEXT NOT NULL,           -- name as the user gave it
    manifest   TEXT NOT NULL,
    chain_id   TEXT NOT NULL,
    diff_ids   TEXT NOT NULL,           -- JSON, lowest first
    mode       TEXT NOT NULL,           -- 'merged' or 'stacked'
    writable   TEXT,                    -- directory with upper and work, or NULL
    boot_id    TEXT NOT NULL,
    namespace  TEXT NOT NULL,           -- mount namespace
    created_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  -- Snapshots of containerd. Content: the layer, if there is one, and above it the directory, if there is one.
  CREATE TABLE snapshots (
    id         INTEGER PRIMARY KEY AUTOINCREMENT, -- snapshots/<id>; never used twice
    name       TEXT NOT NULL UNIQUE,    -- of a committed one; the key of an active one or a view
    parent     INTEGER REFERENCES snapshots (id),
    kind       TEXT NOT NULL,           -- 'active', 'view' or 'committed'
    labels     TEXT NOT NULL,           -- JSON
    ref        TEXT,                    -- label containerd.io/snapshot.ref
    created_at INTEGER NOT NULL,        -- ns since the epoch: read as text, a JS number can't hold it
    updated_at INTEGER NOT NULL,
    diff_id    TEXT,                    -- layer
    exact      INTEGER NOT NULL,        -- 1: that is the image's own layer; 0: one that shale made of a directory
    directory  INTEGER NOT NULL,        -- 1: snapshots/<id> has content, or is there for content to come
    bases      TEXT,                    -- JSON, of active ones and views: what was given out to mount, uppermost first
    options    TEXT,                    -- JSON, of the same: further mount options that were given out
    size       INTEGER,                 -- of a committed one: bytes on disk, NULL until it has been measured
    inodes     INTEGER,
    boot       TEXT                     -- boot of the last change to the directory that may be lost by a power cut, or NULL
  ) STRICT;
  CREATE INDEX snapshots_by_parent ON snapshots (parent);
  CREATE INDEX snapshots_by_ref ON snapshots (ref) WHERE ref IS NOT NULL;
  CREATE INDEX snapshots_by_diff_id ON snapshots (diff_id) WHERE diff_id IS NOT NULL;
  CREATE INDEX snapshots_in_use ON snapshots (id) WHERE bases IS NOT NULL;
  CREATE INDEX snapshots_to_do ON snapshots (id) WHERE kind = 'committed' AND directory = 1;

  -- Mounts below mounts/ that snapshots stand on, each shared by all that show the same.
  CREATE TABLE host_mounts (
    id       INTEGER PRIMARY KEY AUTOINCREMENT, -- mounts/<id>; never used twice
    what     TEXT NOT NULL UNIQUE,      -- JSON, see host-mounts.ts
    diff_ids TEXT NOT NULL,             -- JSON, lowest first: kept in the store
    chain_id TEXT                       -- of a merged image, which is kept too
  ) STRICT;

  CREATE TABLE payloads (
    digest BLOB PRIMARY KEY,
    blob   INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  -- Parts of payloads, and files inside of metadata images, by digest: sources for pulls of parts. A cache like the one
  -- above, made when such a pull first asks; a row is a hint, since bytes are hashed before they are used.
  CREATE TABLE chunks (
    digest BLOB PRIMARY KEY,
    layer  TEXT NOT NULL,               -- in blobs/<layer>, or inline in layers/<layer>/meta.erofs; the layer is in sight
    inline INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    length INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  -- Payload ranges that check found damaged; never indexed again.
  CREATE TABLE damaged_payloads (
    blob   INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (blob, offset)
  ) STRICT, WITHOUT ROWID;
`;

export type Row = Readonly<Record<string, unknown>>;

export class Database implements Disposable {
  readonly #connection: DatabaseSync;
  readonly #path: string;
  readonly #statements = new Map<string, StatementSync>();
  #depth = 0;

  private constructor(connection: DatabaseSync, path: string) {
    this.#connection = connection;
    this.#path = path;
  }

  /**
   * Opens the database, and makes its tables when `create` is given and it has none. FAILED_PRECONDITION when it belongs
   * to another program or to a newer shale.
   */
  static open(path: string, options: { readonly create?: boolean; readonly readOnly?: boolean } = {}): Database {
    let connection: DatabaseSync;
    try {
      connection = new DatabaseSync(path, { readOnly: options.readOnly ?? false, timeout: BUSY_TIMEOUT_MS });
    } catch (error) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot open the store's database ${path}`, { cause: error });
    }
    try {
      connection.exec("PRAGMA foreign_keys = ON");
      if (options.readOnly !== true) {
        useWriteAheadLog(connection);
        connection.exec("PRAGMA synchronous = FULL");
      }
      const database = new Database(connection, path);
      database.#ensureSchema(options.create === true);
      return database;
    } catch (error) {
      connection.close();
      if (error instanceof ShaleError) throw error;
      throw databaseError(path, error);
    }
  }

  #ensureSchema(create: boolean): void {
    if (this.#version() === 0 && create) {
      this.transaction(() => {
        if (this.#version() !== 0 || !this.#isEmpty()) return; // another process was first, or it is not ours
        this.#connection.exec(SCHEMA);
        this.#connection.exec(`PRAGMA application_id = ${APPLICATION_ID}; PRAGMA user_version = ${SCHEMA_VERSION}`);
      });
    }
    const version = this.#version();
    if (version === 0 && this.#isEmpty()) {
      // Who began to make it died before it had tables.
      throw new ShaleError("NOT_FOUND", `Cannot use ${this.#path}: the store has not been made yet`, {
        hint: "Pull an image first, or choose another directory with --root",
      });
    }
    const owner = this.get("PRAGMA application_id")?.application_id;
    if (owner !== APPLICATION_ID) {
      throw new ShaleError("FAILED_PRECONDITION", `Cannot use ${this.#path}: it is not a database of shale`, {
        hint: "Choose another directory with --root",
      });
    }
    if (version > SCHEMA_VERSION) {
      throw new ShaleError(
        "FAILED_PRECONDITION",
        `Cannot use the store at ${this.#path}: its schema version is ${version}, this shale knows up to ${SCHEMA_VERSION}`,
        { hint: "A newer shale has written it: use that one" },
      );
    }
  }

  #isEmpty(): boolean {
    return this.get("SELECT 1 FROM sqlite_schema LIMIT 1") === undefined;
  }

  #version(): number {
    return Number(this.get("PRAGMA user_version")?.user_version ?? 0);
  }

  get(sql: string, ...values: SQLInputValue[]): Row | undefined {
    return this.#guard(() => this.#prepare(sql).get(...values) as Row | undefined);
  }

  all(sql: string, ...values: SQLInputValue[]): Row[] {
    return this.#guard(() => this.#prepare(sql).all(...values) as Row[]);
  }

  /** Returns the number of changed rows. */
  run(sql: string, ...values: SQLInputValue[]): number {
    const changes = this.#guard(() => Number(this.#prepare(sql).run(...values).changes));
    if (this.#depth === 0) recordDatabaseCommit([this.#path, `${this.#path}-wal`]);
    return changes;
  }

  /**
   * Runs `body` in one immediate transaction: it sees the newest state, nobody else writes meanwhile, and everything it
   * wrote is durable when this returns. No network, hashing or file removal belongs in it (G6). Nested calls join.
   */
  transaction<T>(body: () => T): T {
    if (this.#depth > 0) return body();
    this.#guard(() => this.#connection.exec("BEGIN IMMEDIATE"));
    this.#depth++;
    try {
      const result = body();
      this.#guard(() => this.#connection.exec("COMMIT"));
      this.#depth--;
      recordDatabaseCommit([this.#path, `${this.#path}-wal`]);
      return result;
    } catch (error) {
      this.#depth = 0;
      // After an error such as a full disk SQLite may have rolled back by itself.
      if (this.#connection.isTransaction) this.#connection.exec("ROLLBACK");
      throw error;
    }
  }

  close(): void {
    if (this.#connection.isOpen) this.#connection.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #prepare(sql: string): StatementSync {
    let statement = this.#statements.get(sql);
    if (statement === undefined) {
      statement = this.#connection.prepare(sql);
      this.#statements.set(sql, statement);
    }
    return statement;
  }

  #guard<T>(body: () => T): T {
    try {
      return body();
    } catch (error) {
      throw databaseError(this.#path, error);
    }
  }
}

/**
 * Of a database that is made just now. While another process makes the same change SQLite refuses it at once, as both
 * hold a read lock that the other would wait for: it does not wait by itself as everywhere else.
 */
function useWriteAheadLog(connection: DatabaseSync): void {
  const end = performance.now() + BUSY_TIMEOUT_MS;
  for (;;) {
    try {
      connection.exec("PRAGMA journal_mode = WAL");
      return;
    } catch (error) {
      if (resultCode(error) !== SQLITE_BUSY || performance.now() >= end) throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, BUSY_PAUSE_MS);
    }
  }
}

/** SQLite result codes, https://sqlite.org/rescode.html */
const SQLITE_BUSY = 5;
const SQLITE_READONLY = 8;
const SQLITE_IOERR = 10;
/** The index of the write-ahead log can't get its 32 KiB: what opening says on a full disk. */
const SQLITE_IOERR_SHMSIZE = SQLITE_IOERR | (19 << 8);
const SQLITE_CORRUPT = 11;
const SQLITE_FULL = 13;
const SQLITE_CANTOPEN = 14;
const SQLITE_NOTADB = 26;

/** SQLite's primary result code; undefined for any other error. */
function resultCode(error: unknown): number | undefined {
  if (!(error instanceof Error) || !("errcode" in error)) return undefined;
  return Number(error.errcode) === SQLITE_IOERR_SHMSIZE ? SQLITE_FULL : Number(error.errcode) & 0xff;
}

function databaseError(path: string, error: unknown): Error {
  const code = resultCode(error);
  if (!(error instanceof Error) || code === undefined) return error as Error;
  const act = `Cannot use the store's database ${path}`;
  switch (code) {
    case SQLITE_FULL:
      return new ShaleError("RESOURCE_EXHAUSTED", `${act}: the disk is full`, {
        cause: error,
        hint: "Free space, or run shale gc",
      });
    case SQLITE_BUSY:
      return new ShaleError(
        "UNAVAILABLE",
        `${act}: another process has kept it locked for ${BUSY_TIMEOUT_MS / 1000} s`,
        { cause: error },
      );
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return new ShaleError("DATA_LOSS", `${act}: ${error.message}`, {
        cause: error,
        hint: "Move the store aside and pull its images again",
      });
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
      return new ShaleError("PERMISSION_DENIED", `${act}: ${error.message}`, {
        cause: error,
        hint: "Run as the store's owner or choose another --root",
      });
    case SQLITE_IOERR:
      return new ShaleError("UNAVAILABLE", `${act}: ${error.message}`, {
        cause: error,
        hint: "Look at the disk's health and free space",
      });
    default:
      return error;
  }
}
