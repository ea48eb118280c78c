/** That a configuration is taken from podman's database only where it is of the kind that is known. Against a real podman: podman.lab.ts. */
import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { withTemporaryDirectory } from "../../sys/testing/filesystems.ts";
import { readPodmanConfig } from "./podman-database.ts";

const ID = "0123456789ab".padEnd(64, "c");

/** As podman 5.8 makes them (sqlite3 db.sql .schema), with the columns that are used. */
function makeDatabase(path: string, config: string | Uint8Array, schema = 1): void {
  const database = new DatabaseSync(path);
  database.exec(`CREATE TABLE DBConfig (ID INTEGER PRIMARY KEY NOT NULL, SchemaVersion INTEGER NOT NULL);
    CREATE TABLE ContainerConfig (ID TEXT PRIMARY KEY NOT NULL, Name TEXT UNIQUE NOT NULL, PodID TEXT, JSON TEXT NOT NULL);`);
  database.prepare("INSERT INTO DBConfig VALUES (1, ?)").run(schema);
  database.prepare("INSERT INTO ContainerConfig VALUES (?, 'c1', NULL, ?)").run(ID, config);
  database.close();
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
