/** A registry with an image, and the labels by which containerd would ask for its layers. For tests only. */
import { chainIds, type DiffId } from "../../../oci/index.ts";
import type { ScriptedServer, Step } from "../../../registry/testing/scripted-server.ts";
import { type MadeImage, makeImage } from "../../../store/testing/fixtures.ts";
import type { RemoteRequest } from "../../types.ts";

/** Puts an image under `repository:tag`; `steps` replace the answers for the blob of a layer, by position. */
export function serveImage(
  server: ScriptedServer,
  repository: string,
  tars: readonly Buffer[],
  steps: Readonly<Record<number, readonly Step[]>> = {},
  options: { readonly diffIds?: readonly string[] } = {},
): MadeImage {
  const image = makeImage("v1", tars, options);
  for (const [at, layer] of image.layers.entries()) {
    server.blob(repository, layer.blob, "application/octet-stream", ...(steps[at] ?? []));
  }
  server.blob(repository, image.config.bytes);
  server.manifest(repository, "v1", JSON.parse(image.manifest.bytes.toString()));
  return image;
}

/** As containerd 2.1 asks for layer `at`, with everything below known. */
export function requestFor(
  server: ScriptedServer,
  repository: string,
  image: MadeImage,
  at: number,
  changes: Partial<RemoteRequest> & { readonly more?: Readonly<Record<string, string>> } = {},
): RemoteRequest {
  const { more, ...rest } = changes;
  const diffIds = image.layers.map((layer) => layer.diffId);
  const chain = chainIds(diffIds);
  return {
    chainId: chain[at]!,
    parentDiffIds: diffIds.slice(0, at) as DiffId[],
    parent: at === 0 ? "" : `default/${at}/${chain[at - 1]}`,
    signal: undefined,
    labels: {
      "containerd.io/snapshot.ref": chain[at]!,
      "containerd.io/snapshot/cri.image-ref": `${server.host}/${repository}:v1`,
      "containerd.io/snapshot/cri.manifest-digest": image.manifest.digest,
      "containerd.io/snapshot/cri.layer-digest": image.layers[at]!.digest,
      "containerd.io/snapshot/cri.image-layers": image.layers
        .slice(at)
        .map((layer) => layer.digest)
        .join(","),
      ...more,
    },
    ...rest,
  };
}
