/** The process that the crash tests kill: `node driver.ts ROOT [LAYOUT [MARKS]]`. Without LAYOUT it opens the store only. */
import { argv } from "node:process";
import { Store } from "../../src/store/index.ts";
import { runSteps } from "./steps.ts";

const [, , root, layout, marks] = argv;
await using store = Store.open(root!, { create: true });
if (layout !== undefined) await runSteps(store, layout, marks);
