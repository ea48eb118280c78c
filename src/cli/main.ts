/** The program. */
import { runProcess } from "./process.ts";

// The launcher sets it for this process, which has read it by now; the programs that this one starts are not ours.
delete process.env.NODE_COMPILE_CACHE;
await runProcess();
