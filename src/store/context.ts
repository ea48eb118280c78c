import type { Database } from "./database.ts";
import type { Layout } from "./layout.ts";

/** What every part of the store needs: where things are, and the metadata. */
export interface StoreContext {
  readonly layout: Layout;
  readonly database: Database;
}
