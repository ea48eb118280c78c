/** A checkout as a process of its own: `node driver.ts ROOT LAYOUT TAG TARGET [OPTIONS]`; the result, or the error's code, as JSON. */
import { argv } from "node:process";
import { type CheckoutOptions, checkoutImage, Crew } from "../../src/checkout/index.ts";
import { ShaleError } from "../../src/errors/index.ts";
import { findImage } from "../../src/images/find.ts";
import { Store } from "../../src/store/index.ts";
import { pull } from "../../src/store/testing/fixtures.ts";

const [, , root, layout, tag, target, options] = argv;
const abort = new AbortController();
process.once("SIGTERM", () => abort.abort());
await using crew = new Crew(2);
await using store = Store.open(root!, { create: true });
if (store.findImage(tag!) === undefined) await pull(store, layout!, tag!);
using operation = store.begin("checkout");
const chosen = JSON.parse(options ?? "{}") as CheckoutOptions;
const { manifest } = findImage(store, tag!);
try {
  const result = await checkoutImage(operation, manifest, target!, crew, { ...chosen, signal: abort.signal });
  process.stdout.write(`${JSON.stringify(result)}\n`);
} catch (error) {
  if (!ShaleError.is(error)) throw error;
  process.stdout.write(`${JSON.stringify({ code: error.code, message: error.message })}\n`);
  process.exitCode = 1;
}
