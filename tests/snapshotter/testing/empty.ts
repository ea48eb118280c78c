/** Whether a store is as if nothing had ever been in it. */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { loopsBelow, type Machine, mountsBelow } from "./machine.ts";

/** Tables in which a fresh store has rows. */
const OWN_ROWS = ["state", "sqlite_sequence"];
const DIRECTORIES = [
  "blobs",
  "layers",
  "merged",
  "snapshots",
  "mounts",
  "staging",
  "downloads",
  "quarantine",
  "leases",
];

/** No mounts, loops, files or rows are left. Call when no operation is under way. */
export function assertEmpty({ root }: Machine): void {
  const mounted = mountsBelow(root).filter((path) => path !== root); // which may be a disk of its own
  assert.deepEqual(mounted, []);
  assert.deepEqual(loopsBelow(root), []);
  for (const name of DIRECTORIES) assert.deepEqual(readdirSync(join(root, name)), [], name);
  using database = new DatabaseSync(join(root, "shale.db"), { readOnly: true });
  const tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").all();
  for (const { name } of tables) {
    if (OWN_ROWS.includes(String(name))) continue;
    assert.deepEqual(database.prepare(`SELECT * FROM "${name}" LIMIT 3`).all(), [], String(name));
  }
}
