/** main.ts with the commands of tests. */
import { runProcess } from "../process.ts";
import { TEST_COMMANDS } from "./commands.ts";

await runProcess(TEST_COMMANDS);
