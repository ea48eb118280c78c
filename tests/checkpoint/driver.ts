/** Writes or restores one archive in a process of its own, for tests that end it at any point: driver.ts write|restore DIR. */
import { join } from "node:path";
import { openArchive } from "../../src/checkpoint/archive/index.ts";
import { restoreCheckpoint } from "../../src/checkpoint/restore.ts";
import { writeCheckpoint } from "../../src/checkpoint/write.ts";

const [step, directory] = process.argv.slice(2) as [string, string];
if (step === "write") {
  const sources = {
    metadata: join(directory, "in/meta"),
    rootfsDiff: join(directory, "in/upper"),
    volumes: [{ name: "data", directory: join(directory, "in/volume") }],
  };
  await writeCheckpoint(sources, { output: join(directory, "out/archive"), writer: "test" });
} else {
  await using archive = await openArchive(join(directory, "in/archive"));
  await restoreCheckpoint(archive, {
    upper: join(directory, "out/upper"),
    bundle: join(directory, "out/bundle"),
    volumes: [{ name: "data", directory: join(directory, "out/volume") }],
  });
}
