/** A second process that works on a store, for tests: its source sees the fixtures, `Store`, and what the test passes. */
import { Child } from "../../sys/testing/child.ts";

const url = (path: string) => JSON.stringify(new URL(path, import.meta.url).href);

/**
 * Starts a process with `source` as its body: an async context with `Store`, everything of fixtures.ts (as `$`), `args`, `say`
 * (prints a line for {@link Child.line}), `heard()` (the next line of {@link Child.send}) and `forever()` (until a SIGKILL).
 */
export function storeProcess(source: string, args: object, env: Readonly<Record<string, string>> = {}): Child {
  return new Child(
    `
    import { writeSync } from "node:fs";
    import { createInterface } from "node:readline";
    import { Store } from ${url("../index.ts")};
    import * as $ from ${url("./fixtures.ts")};
    const args = ${JSON.stringify(args)};
    const say = (text) => writeSync(1, text + "\\n");
    const lines = createInterface(process.stdin)[Symbol.asyncIterator]();
    const heard = async () => (await lines.next()).value;
    const forever = () => new Promise(() => setInterval(() => {}, 1000));
    ${source}
    process.exit(0);
    `,
    env,
  );
}
