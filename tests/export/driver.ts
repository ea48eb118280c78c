/** One export in a process of its own, for tests that end it at any point: `node driver.ts ROOT WHAT TARGET`. */
import { argv } from "node:process";
import { ExportCache, exportComposefs, exportDisk, exportExt4, exportTarfs } from "../../src/export/index.ts";
import { findImage } from "../../src/images/find.ts";
import { Store } from "../../src/store/index.ts";
import { TAG } from "./kill.ts";

const [, , root, what, target] = argv as unknown as readonly [string, string, string, string, string];
await using store = Store.open(root);
using operation = store.begin(`export of ${what}`);
const { manifest } = findImage(store, TAG);
const source = { manifest, layer: undefined };
const verity = "superblock";
switch (what) {
  case "disk":
    await exportDisk(operation, source, target, { verity, jobs: 2 });
    break;
  case "cached": {
    const cache = new ExportCache(store);
    await cache.place(await cache.ensureDisk(operation, source, { verity, jobs: 1 }), target);
    break;
  }
  case "tarfs":
    await exportTarfs(operation, manifest, target, { disks: "both", verity: true, jobs: 1 });
    break;
  case "composefs":
    await exportComposefs(operation, manifest, target);
    break;
  case "ext4":
    await exportExt4(operation, source, target, { jobs: 1 });
    break;
  default:
    throw new TypeError(`export of ${what}`);
}
