import { createRequire } from "node:module";
import { defineCommand } from "../command.ts";
import { emit } from "../output.ts";

export interface VersionInfo {
  readonly shale: string;
  readonly node: string;
  readonly platform: string;
}

export function formatVersion(info: VersionInfo): string {
  return `shale ${info.shale} (Node ${info.node}, ${info.platform})`;
}

export const version = defineCommand({
  name: "version",
  summary: "Show the versions of shale and of what it runs on",
  description: "The same as --version.",
  arguments: [],
  options: {},
  examples: [{ command: "shale version --json", help: "For a program" }],
  async run(context) {
    await emit(context, versionInfo(), formatVersion);
    return undefined;
  },
});

export function versionInfo(): VersionInfo {
  // Two levels up from src/cli/commands and from dist/cli/commands alike.
  const manifest: unknown = createRequire(import.meta.url)("../../../package.json");
  return {
    shale: (manifest as { readonly version: string }).version,
    node: process.versions.node,
    platform: `${process.platform}/${process.arch}`,
  };
}
