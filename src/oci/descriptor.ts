import { type Digest, parseDigest } from "./digest.ts";
import type { JsonNode } from "./json.ts";
import { MAX_URLS } from "./limits.ts";
import { normalizePlatform, type Platform } from "./platform.ts";

/** OCI image specification 1.1, descriptor.md. `size` counts the bytes that `digest` names. */
export interface Descriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
  readonly annotations: Readonly<Record<string, string>>;
  readonly platform?: Platform;
  readonly artifactType?: string;
  /** Where else the content may be; never followed without the user's wish. */
  readonly urls: readonly string[];
}

/** RFC 6838 section 4.2, restricted names, as descriptor.md asks for. */
const MEDIA_TYPE = /^[A-Za-z0-9][A-Za-z0-9!#$&\-^_.+]{0,126}\/[A-Za-z0-9][A-Za-z0-9!#$&\-^_.+]{0,126}$/;

export function readMediaType(node: JsonNode): string {
  const mediaType = node.string();
  if (!MEDIA_TYPE.test(mediaType)) {
    throw node.fail(`is not a media type: current value is ${JSON.stringify(mediaType.slice(0, 80))}`);
  }
  return mediaType;
}

export function readDescriptor(node: JsonNode): Descriptor {
  const mediaType = readMediaType(node.get("mediaType"));
  const digestNode = node.get("digest");
  const digest = parseDigest(digestNode.string(), node.format, digestNode.path);
  const platform = node.get("platform");
  const artifactType = node.get("artifactType").optionalString();
  return {
    mediaType,
    digest,
    size: node.get("size").size(),
    annotations: node.get("annotations").stringMap(),
    urls: node.get("urls").strings(MAX_URLS),
    ...(platform.isAbsent ? {} : { platform: readPlatform(platform) }),
    ...(artifactType ? { artifactType } : {}),
  };
}

/** The platform members of an index entry ("platform") or of an image config. */
export function readPlatform(node: JsonNode): Platform {
  return normalizePlatform({
    os: node.get("os").optionalString() ?? "",
    architecture: node.get("architecture").optionalString() ?? "",
    variant: node.get("variant").optionalString() ?? "",
    osVersion: node.get("os.version").optionalString() ?? "",
  });
}
