/**
 * Builds the demo's images into an OCI layout.
 */
import { OciLayoutWriter } from "../archives/index.ts";
import { mapConcurrent } from "../async/index.ts";
import type { ByteString } from "../bytes/index.ts";
import { type Descriptor, digestOf, MediaType, type Platform, platformOfNode } from "../oci/index.ts";
import { type BuiltLayer, buildLayer } from "./layer.ts";
import { DEFAULT_SIZE, type DemoPlan, type DemoSize, planDemo } from "./plan.ts";
import { stackLayers, type TreeEntry } from "./tree.ts";

export interface BuildDemoOptions {
  /** An OCI layout, made when it is not there. */
  readonly targetLayoutDir: string;
  readonly signal?: AbortSignal;
  /** Called now and then: uncompressed bytes so far, and about how many there will be. */
  readonly progress?: (done: number, total: number) => void;
  /** How much of the host goes in; 6,000 files and 64 MiB of data and about a hundred programs by default. */
  readonly size?: DemoSize;
  /** The platform that the image is for: this machine's, unless a test says otherwise. */
  readonly platform?: Platform;
}

export interface DemoImage {
  /** "v1" or "v2": its name in the layout. */
  readonly tag: string;
  readonly manifest: Descriptor;
  readonly layers: readonly DemoLayer[];
  /** What the mounted image has to show, by path without a leading slash; "." is the root. */
  readonly tree: ReadonlyMap<ByteString, TreeEntry>;
}

export interface DemoLayer {
  /** "base", "data", "rebuilt data", "app" or "changes". */
  readonly name: string;
  readonly descriptor: Descriptor;
  /** Bytes of the uncompressed tar. */
  readonly size: number;
  readonly entries: number;
}

export interface DemoImages {
  readonly v1: DemoImage;
  readonly v2: DemoImage;
  /** Files of the host that were wanted and left out: not readable by everyone or by this user, too large, or odd. */
  readonly skipped: number;
}

const CREATED = "2026-01-01T00:00:00Z";
/** Compression is what takes time; more would only wait for the main thread, which reads and hashes. */
const LAYERS_AT_ONCE = 2;

const LAYERS: readonly { readonly name: string; readonly plan: keyof Omit<DemoPlan, "skipped"> }[] = [
  { name: "data", plan: "data" },
  { name: "rebuilt data", plan: "rebuiltData" },
  { name: "base", plan: "base" },
  { name: "app", plan: "app" },
  { name: "changes", plan: "changes" },
];

/**
 * Makes the images `v1` and `v2` out of the host's own files and adds them to the layout. Deterministic: the same host
 * files and version of Node give the same digests. FAILED_PRECONDITION when the host has no shell; CANCELLED.
 */
export async function buildDemoImage(options: BuildDemoOptions): Promise<DemoImages> {
  const { targetLayoutDir, signal, progress, size = DEFAULT_SIZE } = options;
  const platform = options.platform ?? platformOfNode(process.arch);
  const plan = planDemo(size);
  using writer = await OciLayoutWriter.open(targetLayoutDir, signal === undefined ? {} : { signal });
  let done = 0;
  const total = 2 * size.bytes + BASE_ESTIMATE;
  const onBytes = (bytes: number) => {
    done += bytes;
    progress?.(done, Math.max(done, total));
  };
  const built = await mapConcurrent(
    LAYERS,
    LAYERS_AT_ONCE,
    async ({ name, plan: part }, _i, group) => ({
      name,
      ...(await buildLayer(writer, plan[part], { signal: group, onBytes })),
    }),
    signal === undefined ? {} : { signal },
  );
  const [data, rebuilt, base, app, changes] = built as [NamedLayer, NamedLayer, NamedLayer, NamedLayer, NamedLayer];
  const v1 = await addImage(writer, "v1", [base, data, app], platform);
  const v2 = await addImage(writer, "v2", [base, rebuilt, app, changes], platform);
  writer.commit();
  return { v1, v2, skipped: plan.skipped };
}

/** For the progress bar only. */
const BASE_ESTIMATE = 50 << 20;

type NamedLayer = BuiltLayer & { readonly name: string };

async function addImage(
  writer: OciLayoutWriter,
  tag: string,
  layers: readonly NamedLayer[],
  platform: Platform,
): Promise<DemoImage> {
  const config = {
    created: CREATED,
    architecture: platform.architecture,
    ...(platform.variant === undefined ? {} : { variant: platform.variant }),
    os: platform.os,
    config: { Env: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], Cmd: ["/app/hello"], WorkingDir: "/" },
    rootfs: { type: "layers", diff_ids: layers.map((layer) => layer.diffId) },
    history: layers.map((layer) => ({ created: CREATED, created_by: `shale demo: ${layer.name}` })),
  };
  const described = layers.map((layer) => describe(MediaType.OCI_LAYER_GZIP, layer.blob));
  const configBlob = await writeJson(writer, config);
  const manifest = describe(
    MediaType.OCI_MANIFEST,
    await writeJson(writer, {
      schemaVersion: 2,
      mediaType: MediaType.OCI_MANIFEST,
      config: { mediaType: MediaType.OCI_CONFIG, ...configBlob },
      layers: layers.map((layer) => ({ mediaType: MediaType.OCI_LAYER_GZIP, ...layer.blob })),
    }),
  );
  writer.addImage({ ...manifest, platform }, { tag });
  return {
    tag,
    manifest,
    layers: layers.map(({ name, size, entries }, i) => ({
      ...{ name, size, entries: entries.length },
      descriptor: described[i]!,
    })),
    tree: stackLayers(layers.map((layer) => layer.entries)),
  };
}

function writeJson(writer: OciLayoutWriter, value: unknown): ReturnType<OciLayoutWriter["writeBlob"]> {
  const bytes = Buffer.from(JSON.stringify(value));
  return writer.writeBlob([bytes], { expected: { digest: digestOf(bytes), size: bytes.length } });
}

function describe(mediaType: string, { digest, size }: Pick<Descriptor, "digest" | "size">): Descriptor {
  return { mediaType, digest, size, annotations: {}, urls: [] };
}
