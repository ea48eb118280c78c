/** The origin that a REF names, for the commands that pull. */
import { type Origin, openOrigin } from "../../images/origin.ts";
import type { ImageSource } from "../../oci/index.ts";
import { type RegistryAccess, temporaryDirectory } from "./registry-access.ts";

/** Runs `body` with it. What it spools on disk meanwhile (a docker archive) is removed afterwards. */
export async function withOrigin<T>(
  source: ImageSource,
  { registry, signal }: { readonly registry: RegistryAccess; readonly signal: AbortSignal },
  body: (origin: Origin) => Promise<T>,
): Promise<T> {
  using spool = source.kind === "docker-archive" ? temporaryDirectory() : undefined;
  const origin = await openOrigin(source, {
    registry: registry.client,
    signal,
    ...(spool === undefined ? {} : { spoolDirectory: spool.path }),
  });
  return await body(origin);
}

/** Registries that --tls-verify=false is about. */
export function hostsOf(sources: readonly ImageSource[]): string[] {
  return sources.flatMap((source) => (source.kind === "registry" ? [source.reference.host] : []));
}
