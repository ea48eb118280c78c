import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { describe, test } from "node:test";
import { ShaleError } from "../errors/index.ts";
import { withTemporaryDirectory } from "../sys/testing/filesystems.ts";
import { Database, SCHEMA_VERSION } from "./database.ts";
import { Store } from "./index.ts";
import { storeProcess } from "./testing/processes.ts";

const withPath = (use: (path: string) => void | Promise<void>) =>
  withTemporaryDirectory((directory) => use(join(directory, "shale.db")));

function change(path: string, sql: string): void {
  const database = new DatabaseSync(path);
  database.exec(sql);
  database.close();
}

describe("Database.open()", () => {
  test("makes tables once, in WAL mode with full sync", () =>
    withPath((path) => {
      for (let time = 0; time < 2; time++) {
        using database = Database.open(path, { create: true });
        assert.equal(database.get("PRAGMA journal_mode")!.journal_mode, "wal");
        assert.equal(database.get("PRAGMA synchronous")!.synchronous, 2);
        assert.equal(database.get("PRAGMA user_version")!.user_version, SCHEMA_VERSION);
        assert.equal(database.get("SELECT value FROM state WHERE key = 'epoch'")!.value, 1);
      }
    }));

  const refused: readonly {
    readonly name: string;
    readonly prepare: (path: string) => void;
    readonly code: string;
    readonly message: RegExp;
  }[] = [
    {
      name: "the store of a newer shale, saying which version it has",
      prepare(path) {
        Database.open(path, { create: true }).close();
        change(path, `PRAGMA user_version = ${SCHEMA_VERSION + 1}`);
      },
      code: "FAILED_PRECONDITION",
      message: new RegExp(`schema version is ${SCHEMA_VERSION + 1}, this shale knows up to ${SCHEMA_VERSION}`),
    },
    {
      name: "a database of another program that has no version",
      prepare: (path) => change(path, "CREATE TABLE theirs (x)"),
      code: "FAILED_PRECONDITION",
      message: /not a database of shale/,
    },
    {
      name: "a database of another program with our version number",
      prepare: (path) => change(path, `CREATE TABLE theirs (x); PRAGMA user_version = ${SCHEMA_VERSION}`),
      code: "FAILED_PRECONDITION",
      message: /not a database of shale/,
    },
    {
      name: "a file that is no database",
      prepare: (path) => writeFileSync(path, "no database ".repeat(1000)),
      code: "DATA_LOSS",
      message: /file is not a database/,
    },
  ];
  for (const { name, prepare, code, message } of refused) {
    test(`refuses ${name}, and leaves it as it is`, () =>
      withPath((path) => {
        prepare(path);
        assert.throws(
          () => Database.open(path, { create: true }),
          (error) =>
            ShaleError.is(error) && error.code === code && message.test(error.message) && error.hint !== undefined,
        );
        if (code !== "FAILED_PRECONDITION") return;
        const database = new DatabaseSync(path);
        const tables = database
          .prepare("SELECT name FROM sqlite_schema WHERE name = 'theirs' OR name = 'payloads'")
          .all();
        assert.equal(tables.length, 1);
        database.close();
      }));
  }

  test("says NOT_FOUND where its maker died before it had tables, unless it may make them", () =>
    withPath((path) => {
      change(path, "PRAGMA journal_mode = WAL");
      assert.throws(
        () => Database.open(path),
        (error) => ShaleError.is(error, "NOT_FOUND"),
      );
      Database.open(path, { create: true }).close();
      Database.open(path).close();
    }));

  test("waits for a process that is just making it, where SQLite does not wait by itself", () =>
    withPath(async (path) => {
      await using other = storeProcess(
        `
        const { DatabaseSync } = await import("node:sqlite");
        const database = new DatabaseSync(args.path);
        database.exec("BEGIN IMMEDIATE");
        say("locked");
        await heard();
        setTimeout(() => { database.exec("COMMIT"); say("free"); }, 300);
        await forever();`,
        { path },
      );
      assert.equal(await other.line(), "locked");
      other.send("go\n");
      Database.open(path, { create: true }).close();
      assert.equal(await other.line(), "free");
    }));

  test("by several processes at once makes one store that all of them use", async () => {
    await withTemporaryDirectory(async (directory) => {
      const root = join(directory, "store");
      const source = `
        say("ready");
        await heard();
        const store = Store.open(args.root, { create: true });
        say("images " + store.listImages().length);
        await store.close();`;
      const children = [1, 2, 3].map(() => storeProcess(source, { root }));
      try {
        for (const child of children) assert.equal(await child.line(), "ready");
        for (const child of children) child.send("go\n");
        for (const child of children) assert.equal(await child.line(), "images 0");
      } finally {
        for (const child of children) await child[Symbol.asyncDispose]();
      }
      await Store.open(root).close();
    });
  });
});

describe("Store.open()", () => {
  test("without create says NOT_FOUND and makes nothing", () =>
    withTemporaryDirectory((directory) => {
      const root = join(directory, "absent");
      assert.throws(
        () => Store.open(root),
        (error) => ShaleError.is(error, "NOT_FOUND"),
      );
      assert.equal(existsSync(root), false);
    }));
});

describe("Database.transaction()", () => {
  test("undoes everything when its body throws, also what a nested one did, and goes on working", () =>
    withPath((path) => {
      using database = Database.open(path, { create: true });
      const count = () => database.get("SELECT count(*) AS n FROM state")!.n;
      const failure = new RangeError("on purpose");
      assert.throws(
        () =>
          database.transaction(() => {
            database.run("INSERT INTO state VALUES ('a', 1)");
            database.transaction(() => {
              database.run("INSERT INTO state VALUES ('b', 1)");
              throw failure;
            });
          }),
        failure,
      );
      assert.equal(count(), 1);
      database.transaction(() => database.run("INSERT INTO state VALUES ('c', 1)"));
      assert.equal(count(), 2);
    }));

  test("is seen by another connection only when it is complete", () =>
    withPath((path) => {
      using one = Database.open(path, { create: true });
      using other = Database.open(path, { readOnly: true });
      const seen = () => other.get("SELECT count(*) AS n FROM state")!.n;
      one.transaction(() => {
        one.run("INSERT INTO state VALUES ('a', 1)");
        one.run("INSERT INTO state VALUES ('b', 1)");
        assert.equal(seen(), 1);
      });
      assert.equal(seen(), 3);
    }));
});
