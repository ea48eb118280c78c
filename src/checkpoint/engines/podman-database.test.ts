/** That a configuration is taken from podman's database only where it is of the kind that is known. Against a real podman: podman.lab.ts. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import type { MountEntry } from "../../sys/index.ts";
import { findPodmanRecord, readPodmanConfig } from "./podman-database.ts";

const ID = "0123456789ab".padEnd(64, "c");

/** As podman 5.8 makes them (sqlite3 db.sql .schema), with the columns that are used. */
function makeDatabase(path: string, config: string | Uint8Array, schema = 1): void {
  using database = new DatabaseSync(path);
  database.exec(`CREATE TABLE DBConfig (ID INTEGER PRIMARY KEY NOT NULL, SchemaVersion INTEGER NOT NULL, GraphRoot TEXT, GraphDriver TEXT);
    CREATE TABLE ContainerConfig (ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL);
    CREATE TABLE ContainerState (ID TEXT PRIMARY KEY NOT NULL, State INTEGER NOT NULL, ExitCode INTEGER, JSON TEXT NOT NULL);`);
  database.prepare("INSERT INTO DBConfig VALUES (1, ?, ?, 'overlay')").run(schema, dirname(path));
  addContainer(database, ID, "c1", config);
}

function addContainer(database: DatabaseSync, id: string, name: string, config: string | Uint8Array, state = {}): void {
  database.prepare("INSERT INTO ContainerConfig VALUES (?, ?, NULL, ?)").run(id, name, config);
  const bytes = Buffer.from(JSON.stringify(state));
  database.prepare("INSERT INTO ContainerState VALUES (?, 3, 0, ?)").run(id, bytes);
}

function withBundle(use: (database: string, bundle: string) => void): Promise<void> {
  return withTemporaryDirectory(async (root) => {
    const bundle = join(root, "overlay-containers", ID, "userdata");
    mkdirSync(bundle, { recursive: true });
    use(join(root, "db.sql"), bundle);
  });
}

const configFor = (bundle: string, more: object = {}) =>
  JSON.stringify({ id: ID, staticDir: bundle, Dependencies: null, ...more });

describe("readPodmanConfig()", () => {
  test("gives the configuration as it stands, large numbers too", () =>
    withBundle((database, bundle) => {
      const text = configFor(bundle).replace("}", ',"limit":9223372036854775807}');
      makeDatabase(database, Buffer.from(text));
      assert.equal(Buffer.from(readPodmanConfig(ID, bundle)!).toString(), text);
    }));

  test("leaves out the alias that a network has by the container's id, and no other", () =>
    withBundle((database, bundle) => {
      const newNetworks = {
        podman: { interface_name: "eth0", aliases: ["web", ID.slice(0, 12)] },
        other: { interface_name: "eth1", aliases: [ID.slice(0, 12)] },
        plain: { interface_name: "eth2" },
      };
      makeDatabase(database, configFor(bundle, { newNetworks }));
      assert.deepEqual(JSON.parse(Buffer.from(readPodmanConfig(ID, bundle)!).toString()).newNetworks, {
        podman: { interface_name: "eth0", aliases: ["web"] },
        other: { interface_name: "eth1" },
        plain: { interface_name: "eth2" },
      });
    }));

  for (const [what, more, schema] of [
    ["of another schema", {}, 2],
    ["of another container", { id: "other" }, 1],
    ["of another bundle", { staticDir: "/elsewhere" }, 1],
    ["that depends on other containers", { Dependencies: ["other"] }, 1],
    ["with networks of another form", { newNetworks: { podman: ["eth0"] } }, 1],
    ["with networks, and numbers that would be changed", { newNetworks: {}, limit: 1e15 + 0.5 }, 1],
  ] as const) {
    test(`says nothing of a configuration ${what}`, () =>
      withBundle((database, bundle) => {
        const text = configFor(bundle, more).replace("1000000000000000.5", "9223372036854775807");
        makeDatabase(database, text, schema);
        assert.equal(readPodmanConfig(ID, bundle), undefined);
      }));
  }

  test("says nothing where there is no database, no such container, or what is there can't be read", async () => {
    await withBundle((_, bundle) => assert.equal(readPodmanConfig(ID, bundle), undefined));
    await withBundle((database, bundle) => {
      makeDatabase(database, configFor(bundle));
      assert.equal(readPodmanConfig("other", bundle), undefined);
    });
    await withBundle((database, bundle) => {
      writeFileSync(database, "no database");
      assert.equal(readPodmanConfig(ID, bundle), undefined);
    });
    await withBundle((database, bundle) => {
      makeDatabase(database, "no JSON");
      assert.equal(readPodmanConfig(ID, bundle), undefined);
    });
  });

  test("waits for a podman that writes, and says nothing when that takes too long", () =>
    withBundle((database, bundle) => {
      makeDatabase(database, configFor(bundle));
      using other = new DatabaseSync(database);
      other.exec("BEGIN EXCLUSIVE");
      assert.equal(readPodmanConfig(ID, bundle), undefined);
      other.exec("ROLLBACK");
      assert.notEqual(readPodmanConfig(ID, bundle), undefined);
    }));
});

describe("findPodmanRecord()", () => {
  const overlay = (mountPoint: string, options: readonly string[]): MountEntry => ({
    ...{ id: 1, parentId: 0, device: "0:1", root: "/", mountPoint, options: [], propagation: [] },
    ...{ type: "overlay", source: "overlay", superOptions: ["rw", ...options] },
  });

  interface Change {
    readonly config?: object;
    readonly state?: object;
    readonly options?: (root: string) => readonly string[];
    readonly mounts?: (root: string, mounts: readonly MountEntry[]) => readonly MountEntry[];
    readonly database?: (database: DatabaseSync) => void;
  }

  /** One running container in a storage of its own, as podman has it but for what is changed; what is found by a name. */
  async function find(name: string, change: Change = {}): Promise<[ReturnType<typeof findPodmanRecord>, string]> {
    let answer: [ReturnType<typeof findPodmanRecord>, string] | undefined;
    await withBundle((path, bundle) => {
      const root = dirname(path);
      makeDatabase(path, "{}");
      const place = `${root}/overlay/layer`;
      const config = { runtime: "crun", rootfsImageID: "f00d", spec: { annotations: {} }, ...change.config };
      const state = { state: 3, mountPoint: `${place}/merged`, ...change.state };
      {
        using database = new DatabaseSync(path);
        database.exec("DELETE FROM ContainerConfig; DELETE FROM ContainerState");
        addContainer(database, ID, "c1", Buffer.from(configFor(bundle, config)), state);
        change.database?.(database);
      }
      const options = change.options?.(root) ?? [
        `lowerdir=${root}/overlay/b/diff:${root}/overlay/a/diff`,
        `upperdir=${place}/diff`,
        `workdir=${place}/work`,
      ];
      const mounts = [overlay("/", ["lowerdir=/x", "upperdir=/y"]), overlay(`${place}/merged`, options)];
      answer = [findPodmanRecord(name, change.mounts?.(root, mounts) ?? mounts), root];
    });
    return answer!;
  }

  test("finds a running container by its name and by its id, with the directories that the kernel tells", async () => {
    for (const name of ["c1", ID]) {
      const [record, root] = await find(name);
      assert.deepEqual(
        { ...record, config: undefined },
        {
          ...{ id: ID, bundle: `${root}/overlay-containers/${ID}/userdata`, runtime: "crun", config: undefined },
          ...{ upper: `${root}/overlay/layer/diff`, lower: [`${root}/overlay/b/diff`, `${root}/overlay/a/diff`] },
        },
      );
      assert.equal(JSON.parse(Buffer.from(record!.config).toString()).id, ID);
    }
  });

  test("finds one that is kept when it ends, as podman notes it", async () => {
    const annotations = { "io.podman.annotations.autoremove": "FALSE" };
    assert.ok((await find("c1", { config: { spec: { annotations } } }))[0]);
    assert.ok((await find("c1", { config: { spec: {} } }))[0]);
  });

  const elsewhere = overlay("/other/overlay/layer/merged", ["lowerdir=/other/overlay/a/diff", "upperdir=/u"]);
  const changes: Readonly<Record<string, Change>> = {
    "that does not run": { state: { state: 6 } },
    "that is paused": { state: { state: 5 } },
    "that goes away with its processes": {
      config: { spec: { annotations: { "io.podman.annotations.autoremove": "TRUE" } } },
    },
    "without an image": { config: { rootfsImageID: "" } },
    "with a root of its own": { config: { rootfs: "/srv/root" } },
    "with volumes": { config: { namedVolumes: [{ volumeName: "v", dest: "/v" }] } },
    "without a runtime": { config: { runtime: undefined } },
    "without a specification": { config: { spec: undefined } },
    "of another bundle": { config: { staticDir: "/elsewhere" } },
    "that depends on others": { config: { Dependencies: ["other"] } },
    "that is mounted elsewhere": { state: { mountPoint: "/elsewhere" } },
    "where nothing is mounted": { mounts: () => [] },
    "where two storages have mounts": { mounts: (_, mounts) => [...mounts, elsewhere] },
    "where another storage has mounts": { mounts: () => [elsewhere] },
    "of a storage that the database is not of": {
      database: (database) => database.exec("UPDATE DBConfig SET GraphRoot = '/elsewhere'"),
    },
    "of another driver": { database: (database) => database.exec("UPDATE DBConfig SET GraphDriver = 'vfs'") },
    "of another schema": { database: (database) => database.exec("UPDATE DBConfig SET SchemaVersion = 2") },
    "without a state": { database: (database) => database.exec("DELETE FROM ContainerState") },
    "with a state that is no JSON": { database: (database) => database.exec("UPDATE ContainerState SET JSON = 'no'") },
    "whose name is another's id": { database: (database) => addContainer(database, "c1", "c2", "{}") },
    "whose lower directories are relative": {
      options: (root) => ["lowerdir=l/B:l/A", `upperdir=${root}/overlay/layer/diff`],
    },
    "whose lower directories are escaped": {
      options: (root) => [`lowerdir=${root}/overlay/a\\:b/diff`, `upperdir=${root}/overlay/layer/diff`],
    },
    "whose lower directories are mounts of podman's own, with other ids": {
      options: (root) => [`lowerdir=${root}/overlay/layer/mapped/0`, `upperdir=${root}/overlay/layer/diff`],
    },
    "whose image is in another storage": {
      options: (root) => ["lowerdir=/usr/share/images/overlay/a/diff", `upperdir=${root}/overlay/layer/diff`],
    },
    "whose upper directory is another": {
      options: (root) => [`lowerdir=${root}/overlay/a/diff`, `upperdir=${root}/overlay/other/diff`],
    },
  };
  for (const [what, change] of Object.entries(changes)) {
    test(`says nothing of a container ${what}`, async () => assert.equal((await find("c1", change))[0], undefined));
  }

  test("says nothing of a part of an id, which podman may take", async () => {
    assert.equal((await find(ID.slice(0, 12)))[0], undefined);
  });
});
