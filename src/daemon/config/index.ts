/**
 * The daemon's configuration: TOML with `version = 1`, validated strictly, every option with a default. Pure.
 */
export { formatConfig, formatConfigDocs } from "./format.ts";
export type { Config } from "./options.ts";
export { defaultConfig, parseConfig } from "./parse.ts";
export { parseHostPort } from "./values.ts";
