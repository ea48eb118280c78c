/** The registry client that a command's options describe. */
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { RegistryClient, RegistryOptions } from "../../registry/index.ts";
import { logRegistryEvent } from "../../registry/log.ts";
import { makeDirectory, removeTree } from "../../sys/index.ts";
import type { ValuesOf } from "../command.ts";
import type { Log } from "../../log/index.ts";
import type { REGISTRY } from "./options.ts";

export interface RegistryAccess extends AsyncDisposable {
  /** The same client for every call, made by the first one: nothing of it is loaded before. */
  client(): Promise<RegistryClient>;
}

export interface RegistryAccessOptions {
  readonly log: Log;
  /**
   * Those that --tls-verify=false is about, asked for when the client is made; "all" where the client outlives such a list, and
   * is used for nothing else.
   */
  readonly hosts: (() => readonly string[]) | "all";
  readonly maxConnections?: number;
}

export function registryAccess(values: ValuesOf<typeof REGISTRY>, options: RegistryAccessOptions): RegistryAccess {
  let made: Promise<RegistryClient> | undefined;
  const make = async () => {
    const { RegistryClient } = await import("../../registry/index.ts");
    return new RegistryClient(registryOptions(values, options));
  };
  return {
    client() {
      made ??= make();
      return made;
    },
    async [Symbol.asyncDispose]() {
      // what kept it from being made was thrown to whoever asked for it
      const client = await made?.catch(() => undefined);
      await client?.[Symbol.asyncDispose]();
    },
  };
}

export function registryOptions(values: ValuesOf<typeof REGISTRY>, options: RegistryAccessOptions): RegistryOptions {
  const authFile = values["auth-file"];
  const hostsDir = values["hosts-dir"];
  const { hosts, maxConnections } = options;
  return {
    ...(values["tls-verify"] ? {} : { insecure: hosts === "all" ? hosts : [...new Set(hosts())] }),
    ...(authFile === undefined ? {} : { authFile }),
    ...(hostsDir === undefined ? {} : { hostsDirs: [hostsDir] }),
    ...(maxConnections === undefined ? {} : { maxConnections }),
    log: (event) => logRegistryEvent(options.log, event),
  };
}

/**
 * A directory for large temporary files, removed when it is disposed of. In /var/tmp unless TMPDIR says otherwise: /tmp is
 * often in memory.
 */
export function temporaryDirectory(): Disposable & { readonly path: string } {
  const parent = tmpdir() === "/tmp" ? "/var/tmp" : tmpdir();
  const path = join(parent, `shale-${crypto.randomUUID()}`);
  makeDirectory(path);
  return { path, [Symbol.dispose]: () => void removeTree(path) };
}
