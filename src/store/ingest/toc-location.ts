/** Where a layer's TOC was in its blob, as it stands in the layer's row. */
import { toHex } from "../../bytes/index.ts";
import type { TocLocation } from "../../formats/toc/index.ts";

export function formatTocLocation(location: TocLocation): string {
  return JSON.stringify({ ...location, digest: location.digest === undefined ? undefined : toHex(location.digest) });
}

/** What `formatTocLocation` wrote. */
export function parseTocLocation(text: string): TocLocation {
  const { digest, ...rest } = JSON.parse(text) as Omit<TocLocation, "digest"> & { readonly digest?: string };
  return { ...rest, digest: digest === undefined ? undefined : Buffer.from(digest, "hex") } as TocLocation;
}
