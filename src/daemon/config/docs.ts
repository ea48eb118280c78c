/** Prints docs/daemon-config.md; `npm run docs`. */
import { formatConfigDocs } from "./format.ts";

process.stdout.write(formatConfigDocs());
