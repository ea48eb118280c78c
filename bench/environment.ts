/**
 * What all scenarios stand on: a work directory, the images, a registry that serves them, and facts about the machine.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { arch, cpus, release, totalmem } from "node:os";
import { join, resolve } from "node:path";
import { ShaleError } from "../src/errors/index.ts";
import { makeManyEntries } from "./made-up.ts";
import { hasCommand, run, startDaemon } from "./process.ts";

const BUILD_IMAGES = join(import.meta.dirname, "../../shared/build-images.sh");

/** Tags that build-images.sh makes, in its order. */
export const IMAGE_NAMES = ["base", "python", "postgres", "python-rebuilt", "node"] as const;

/** One layer of a built image. `path` is the compressed blob where the registry keeps it. */
export interface BenchLayer {
  readonly digest: string;
  readonly size: number;
  readonly path: string;
}

export interface BenchImage {
  readonly name: string;
  /** As contestants pull it: host:port/name:tag over plain HTTP. */
  readonly reference: string;
  readonly layers: readonly BenchLayer[];
}

export interface Environment extends AsyncDisposable {
  /** Everything the benchmark writes is below it, on the file system under test. */
  readonly work: string;
  readonly images: readonly BenchImage[];
  /** The OCI layout that they come from. */
  readonly layout: string;
  /** An image of one empty directory: pulling it loads all of a contestant's programs, and none of its data. */
  readonly warmUp: BenchImage;
  readonly registryPid: number;
  readonly signal: AbortSignal;
}

/** Commands a full run needs on the host, by Debian package. */
const TOOLS: Readonly<Record<string, string>> = {
  "docker-registry": "docker-registry",
  skopeo: "skopeo",
  containerd: "containerd",
  unpigz: "pigz", // containerd uses it instead of Go's slower gzip when it is there: peers run at their best
  debootstrap: "debootstrap",
  tar: "tar",
};

export interface EnvironmentOptions {
  /** Where build-images.sh put, or shall put, the images. */
  readonly images: string;
  /** Parent of the work directory; decides the file system under test. */
  readonly parent: string;
  readonly signal: AbortSignal;
}

/**
 * Builds the images when they are missing, starts a registry on a free loopback port and copies them into it.
 * Throws FAILED_PRECONDITION without root or without a tool.
 */
export async function openEnvironment(options: EnvironmentOptions): Promise<Environment> {
  const { signal } = options;
  if (process.getuid?.() !== 0) {
    throw new ShaleError(
      "FAILED_PRECONDITION",
      "Cannot run the benchmark: it mounts and drops caches, which takes root",
    );
  }
  const missing = Object.entries(TOOLS).filter(([command]) => !hasCommand(command));
  if (missing.length > 0) {
    const packages = missing.map(([, name]) => name).join(" ");
    throw new ShaleError("FAILED_PRECONDITION", `Cannot run the benchmark: ${missing[0]![0]} is not installed`, {
      hint: `On Debian: apt-get install --no-install-recommends ${packages}`,
    });
  }
  const layout = join(resolve(options.images), "oci");
  if (!existsSync(join(layout, "index.json"))) await run([BUILD_IMAGES, options.images], { signal });

  await using stack = new AsyncDisposableStack();
  const work = mkdtempSync(join(options.parent, "shale-bench-"));
  stack.defer(() => removeWork(work));
  const storage = join(work, "registry");
  const { address, pid } = stack.use(await startRegistry(storage, signal));
  const publish = async (source: string, tag: string, name: string): Promise<BenchImage> => {
    const reference = `${address}/${name}:bench`;
    await run(["skopeo", "copy", "-q", "--dest-tls-verify=false", `oci:${source}:${tag}`, `docker://${reference}`], {
      signal,
    });
    return { name, reference, layers: readLayers(source, tag, storage) };
  };
  const images: BenchImage[] = [];
  for (const name of IMAGE_NAMES) images.push(await publish(layout, name, name));
  const tiny = makeManyEntries(join(work, "warm-up"), 1);
  const warmUp = await publish(join(work, "warm-up"), tiny.tag, "warm-up");
  const owned = stack.move();
  return { work, images, layout, warmUp, registryPid: pid, signal, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

interface Registry extends AsyncDisposable {
  readonly address: string;
  readonly pid: number;
}

async function startRegistry(storage: string, signal: AbortSignal): Promise<Registry> {
  mkdirSync(storage, { recursive: true });
  const address = `127.0.0.1:${await freePort()}`;
  const config = `${storage}.yml`;
  // Blobs are served by sendfile from plain files, so that the registry costs as little as a registry can.
  writeFileSync(
    config,
    `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: ${storage}}}
http: {addr: "${address}"}
`,
  );
  const daemon = await startDaemon(["docker-registry", "serve", config], {
    signal,
    logFile: `${storage}.log`,
    ready: () =>
      fetch(`http://${address}/v2/`, { signal }).then(
        (response) => response.ok,
        () => false,
      ),
  });
  return { address, pid: daemon.pid, [Symbol.asyncDispose]: () => daemon[Symbol.asyncDispose]() };
}

function freePort(): Promise<number> {
  return new Promise((resolvePort, reject) => {
    const server = createServer();
    server.on("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolvePort(typeof address === "object" && address ? address.port : 0));
    });
  });
}

interface Descriptor {
  readonly digest: string;
  readonly size: number;
  readonly annotations?: Readonly<Record<string, string>>;
}

function readLayers(layout: string, name: string, storage: string): BenchLayer[] {
  const json = (path: string) => JSON.parse(readFileSync(path, "utf8"));
  const index: { readonly manifests: readonly Descriptor[] } = json(join(layout, "index.json"));
  const descriptor = index.manifests.find((m) => m.annotations?.["org.opencontainers.image.ref.name"] === name);
  if (!descriptor) throw new ShaleError("NOT_FOUND", `Cannot read image ${name}: ${layout} has no such tag`);
  const hexOf = (digest: string) => digest.slice("sha256:".length);
  const manifest: { readonly layers: readonly Descriptor[] } = json(
    join(layout, "blobs/sha256", hexOf(descriptor.digest)),
  );
  return manifest.layers.map(({ digest, size }) => {
    const hex = hexOf(digest);
    return { digest, size, path: join(storage, "docker/registry/v2/blobs/sha256", hex.slice(0, 2), hex, "data") };
  });
}

/** Unmounts what a failed run left below `work` in this mount namespace, newest first, then deletes the directory. */
async function removeWork(work: string): Promise<void> {
  const mounts = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[4] ?? "")
    .filter((point) => point.startsWith(`${work}/`));
  for (const point of mounts.reverse()) await run(["umount", "-l", point]);
  rmSync(work, { recursive: true, force: true });
}

/** The machine, for the head of the report: label and value. */
export function machineFacts(work: string): [string, string][] {
  const mount = readFileSync("/proc/self/mountinfo", "utf8")
    .split("\n")
    .map((line) => line.split(" "))
    .filter((fields) => fields[4] !== undefined && (fields[4] === "/" || `${work}/`.startsWith(`${fields[4]}/`)))
    .sort((a, b) => a[4]!.length - b[4]!.length)
    .at(-1);
  const fileSystem = mount?.[mount.indexOf("-") + 1] ?? "unknown";
  return [
    ["date", new Date().toISOString().slice(0, 10)],
    ["processor", `${cpus().length} x ${cpus()[0]?.model ?? "unknown"} (${arch()})`],
    ["memory", `${Math.round(totalmem() / 2 ** 30)} GiB`],
    ["kernel", `Linux ${release()}`],
    ["file system", fileSystem],
    ["Node", process.version],
  ];
}
