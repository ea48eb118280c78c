/** Checkpoint archives built to the described format of each dialect, small, with memory that reads as such. */
import { gzipSync } from "node:zlib";
import { encodeImage, encodeMessage, encodeProcesses, type SampleProcess } from "../../formats/criu/testing/images.ts";
import { encodeTarHeader, TAR_END, type TarHeader, tarPadding } from "../../formats/tar/index.ts";

export interface SampleFile {
  readonly path: string;
  readonly content?: Uint8Array | string;
  readonly header?: Partial<TarHeader>;
}

const HEADER: Omit<TarHeader, "path" | "size"> = {
  type: "file",
  linkTarget: "",
  mode: 0o644,
  uid: 0,
  gid: 0,
  mtimeSeconds: 1_700_000_000,
  mtimeNanoseconds: 0,
  rdevMajor: 0,
  rdevMinor: 0,
  xattrs: [],
};

/** A tar of these, in this order; a path that ends with a slash is a directory. */
export function tarOf(files: readonly SampleFile[]): Buffer {
  return Buffer.concat([
    ...files.flatMap(({ path, content = "", header }) => {
      const bytes = Buffer.from(content);
      const type = path.endsWith("/") ? "directory" : "file";
      const mode = type === "directory" ? 0o755 : 0o644;
      const head = encodeTarHeader({ ...HEADER, type, mode, path, size: bytes.length, ...header });
      return [head, bytes, tarPadding(bytes.length)];
    }),
    TAR_END,
  ]);
}

export const PAGE = 4096;
/** Where the sample's processes have their memory. */
export const HEAP = 0x5555_0000_0000;
export const STACK = 0x7ffd_0000_0000;

/** `count` pages, each unlike the others; `seed` makes other ones. */
export function pages(count: number, seed = 0): Buffer {
  const memory = Buffer.alloc(count * PAGE);
  for (let page = 0; page < count; page++) {
    for (let at = 0; at < PAGE; at += 4)
      memory.writeUInt32LE((seed * 7919 + page * 104_729 + at) >>> 0, page * PAGE + at);
  }
  return memory;
}

export interface SampleOptions {
  readonly name?: string;
  readonly processes?: readonly SampleProcess[];
  /** Entries of the changed files. */
  readonly rootfs?: readonly SampleFile[];
  readonly deleted?: readonly string[];
}

/** The shell's command line lies in the first page of its stack. */
export function sampleProcesses(seed = 0): SampleProcess[] {
  const memory = Buffer.concat([pages(32, seed), Buffer.alloc(16 * PAGE), pages(4, seed + 1000)]);
  memory.write("sh\0-c\0counter\0", 48 * PAGE + 64);
  return [
    {
      ...{ pid: 1, ppid: 0, comm: "sh", memory },
      arguments: { address: STACK + 64, length: 14 },
      runs: [
        { address: HEAP, pages: 48 },
        { address: STACK, pages: 4 },
      ],
    },
    { pid: 7, ppid: 1, comm: "sleep", uid: 1000, runs: [{ address: HEAP, pages: 2 }], memory: pages(2, seed + 5) },
  ];
}

const ROOTFS: readonly SampleFile[] = [
  { path: "data/", header: { mode: 0o750 } },
  { path: "data/log.txt", content: "one line\n" },
  { path: "data/large.bin", content: pages(40, 99) },
  { path: "etc/app.conf", content: "changed = true\n" },
];
const DELETED = ["/etc/motd", "/var/cache/old"];

const json = (value: unknown) => JSON.stringify(value);

function config(name: string, more: object = { rootfsImageID: "ab12".repeat(16) }): string {
  return json({
    id: "4f6a".repeat(16),
    name,
    rootfsImageName: "docker.io/library/httpd:2.4",
    runtime: "crun",
    createdTime: "2026-05-01T10:00:00.5Z",
    ...more,
  });
}

function spec(annotations: Readonly<Record<string, string>>): string {
  return json({
    ociVersion: "1.2.0",
    process: { args: ["sh", "-c", "counter"], cwd: "/" },
    hostname: "sample",
    mounts: [
      { destination: "/proc", type: "proc", source: "proc" },
      { destination: "/data", type: "bind", source: "/srv/data" },
    ],
    annotations,
  });
}

function criuFiles({ processes = sampleProcesses() }: SampleOptions): SampleFile[] {
  const images = encodeProcesses(processes).map(([name, content]) => ({
    path: `checkpoint/${name}`,
    content,
    header: { mode: 0o600 },
  }));
  const descriptors = { path: "checkpoint/descriptors.json", content: '["/dev/null","pipe:[1]","pipe:[2]"]' };
  return [{ path: "checkpoint/", header: { mode: 0o700 } }, descriptors, ...images];
}

function statistics(): Buffer {
  return encodeImage("stats", [
    encodeMessage([1, encodeMessage([1, 90], [2, 51_000], [3, 7], [4, 8], [5, 60], [6, 0], [7, 54])]),
  ]);
}

/** In podman's order. */
export function podmanArchive(options: SampleOptions = {}): Buffer {
  const { name = "counter", rootfs = ROOTFS, deleted = DELETED } = options;
  const network = {
    podman: { interfaces: { eth0: { subnets: [{ ipnet: "10.88.0.7/16" }], mac_address: "aa:bb:cc:00:00:01" } } },
  };
  return tarOf([
    { path: "artifacts/" },
    { path: "devshm-checkpoint.tar", content: tarOf([{ path: "segment", content: pages(1, 3) }]) },
    { path: "config.dump", content: config(name), header: { mode: 0o600 } },
    { path: "spec.dump", content: spec({ "io.container.manager": "libpod" }), header: { mode: 0o600 } },
    { path: "network.status", content: json(network) },
    { path: "stats-dump", content: statistics() },
    ...criuFiles(options),
    { path: "rootfs-diff.tar", content: tarOf(rootfs) },
    { path: "deleted.files", content: json(deleted) },
    { path: "volumes/" },
    { path: "volumes/data.tar", content: tarOf([{ path: "./" }, { path: "./a", content: "volume" }]) },
  ]);
}

export function crioArchive(options: SampleOptions = {}): Buffer {
  const { name = "counter", rootfs = ROOTFS, deleted = DELETED } = options;
  const annotations = {
    "io.container.manager": "cri-o",
    "io.kubernetes.pod.name": "web",
    "io.kubernetes.pod.namespace": "shop",
  };
  const mounts = [{ source: "/srv/data", destination: "/data", file_type: "directory", permissions: 493 }];
  return tarOf([
    { path: "bind.mounts", content: json(mounts) },
    ...criuFiles(options),
    {
      path: "config.dump",
      content: config(name, {
        rootfsImageRef: "docker.io/library/httpd@sha256:ab",
        checkpointedTime: "2026-05-01T11:00:00Z",
      }),
    },
    { path: "deleted.files", content: json(deleted) },
    { path: "dump.log", content: "(00.000) dumped\n" },
    { path: "rootfs-diff.tar", content: tarOf(rootfs) },
    { path: "spec.dump", content: spec(annotations) },
    { path: "stats-dump", content: statistics() },
  ]);
}

export function containerdArchive(options: SampleOptions = {}): Buffer {
  const { name = "counter", rootfs = ROOTFS, deleted = DELETED } = options;
  const annotations = {
    "io.kubernetes.cri.container-type": "container",
    "io.kubernetes.cri.sandbox-name": "web",
    "io.kubernetes.cri.sandbox-namespace": "shop",
  };
  const whiteouts = deleted.map((path) => {
    const slash = path.lastIndexOf("/");
    return { path: `${path.slice(1, slash + 1)}.wh.${path.slice(slash + 1)}` };
  });
  return tarOf([
    ...criuFiles(options),
    { path: "config.dump", content: config(name, { rootfsImageRef: "sha256:ab" }) },
    { path: "container.log", content: "one line\n" },
    { path: "dump.log", content: "(00.000) dumped\n" },
    { path: "rootfs-diff.tar", content: gzipSync(tarOf([...rootfs, ...whiteouts])) },
    { path: "spec.dump", content: spec(annotations) },
    { path: "stats-dump", content: statistics() },
    { path: "status", content: json({ Version: "v1" }) },
    { path: "status.dump", content: json({ id: "x", state: 1 }) },
  ]);
}

/** containers/podman PR 24984: the changes are members. */
export function inlineArchive(options: SampleOptions = {}): Buffer {
  const { name = "counter", rootfs = ROOTFS, deleted = DELETED } = options;
  return tarOf([
    { path: "config.dump", content: config(name) },
    { path: "spec.dump", content: spec({ "io.container.manager": "libpod" }) },
    ...criuFiles(options),
    { path: "rootfs-diff/" },
    ...rootfs.map((file) => ({ ...file, path: `rootfs-diff/${file.path}` })),
    { path: "deleted.files", content: json(deleted) },
  ]);
}
