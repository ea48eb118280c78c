/** The process that crash.test.ts kills: `node driver.ts ROOT`. */
import { argv } from "node:process";
import { runSteps } from "./steps.ts";

await runSteps(argv[2]!);
