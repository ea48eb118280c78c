/** Every option of the daemon, once: the parser, `--print-config` and docs/daemon.md are made from this table. */
import { choice, duration, endpoint, flag, integer, path, type Spec, size } from "./values.ts";

const GiB = 2 ** 30;

/** Above the first section. */
export const TOP = {
  root: path({
    default: "/var/lib/shale",
    help: "Directory of the store. One daemon, and one containerd, per root.",
  }),
  address: path({
    default: "/run/shale/shale.sock",
    help: "Socket of the snapshots, diff and health services. Its directory is made; mode 0600.",
  }),
} as const;

export const OPTIONS = {
  log: {
    level: choice(["error", "warn", "info", "debug"], {
      default: "info",
      reload: true,
      help: "The least important messages to log. SIGUSR1 logs one level more, SIGUSR2 one less.",
    }),
    format: choice(["text", "json"], { default: "text", reload: true, help: "One line a message, on stdout." }),
  },
  metrics: {
    address: endpoint({
      default: "",
      help: "Where /metrics, /healthz and /readyz are served over HTTP. There is no authentication: a loopback address or a socket.",
    }),
  },
  mounts: {
    mode: choice(["merged", "stacked"], {
      default: "merged",
      help: "One image for all layers of a chain, or an overlay of one mount a layer. Recorded with each snapshot: a change is for new ones.",
    }),
    volatile: flag({
      default: false,
      help: 'Overlays of containers with the option "volatile": no syncs, and unusable after a power cut. The label containerd.io/snapshot/overlay.volatile overrides it.',
    }),
    remap_ids: flag({
      default: true,
      help: "Honour the uid and gid mappings of user namespaces by idmapped mounts, where the kernel can.",
    }),
  },
  plain: {
    layers: choice(["keep", "convert"], {
      default: "keep",
      help: "What becomes of a layer that another differ unpacked into a directory: it stays one, or is made into a layer after Commit.",
    }),
  },
  remote: {
    enabled: flag({
      default: true,
      help: "Fetch layers ourselves when a pull carries the image's name (CRI annotations, remote annotations of the transfer service).",
    }),
    hosts_dir: path({
      default: "",
      help: 'Directory of hosts.toml files: mirrors, certificates and headers per registry; "" is /etc/containerd/certs.d and /etc/docker/certs.d.',
    }),
    auth_file: path({
      default: "",
      help: "Credentials in the form of docker's config.json; \"\" is ~/.docker/config.json of the daemon's user.",
    }),
    kubeconfig: path({
      default: "",
      help: 'Reads image pull secrets from this cluster. "" is off.',
    }),
  },
  cri_proxy: {
    address: path({
      default: "",
      help: 'Socket on which the CRI image service is served for the kubelet (--image-service-endpoint): pulls pass through to containerd, and their credentials are used for the same pull\'s layers. "" is off.',
    }),
    backend: path({
      default: "/run/containerd/containerd.sock",
      help: "Where CRI calls go.",
    }),
  },
  limits: {
    images: integer({ default: 16, min: 1, max: 1024, unit: "images", help: "Images fetched at a time." }),
    layers: integer({
      default: 16,
      min: 1,
      max: 1024,
      unit: "layers",
      help: "Layers fetched at a time, of all images together.",
    }),
    layers_of_image: integer({
      default: 6,
      min: 1,
      max: 1024,
      unit: "layers",
      help: "Layers of one image fetched at a time.",
    }),
    bytes_in_flight: size({
      default: 8 * GiB,
      min: 16 * 2 ** 20,
      max: 2 ** 40,
      help: "Compressed bytes of the layers fetched at a time; a larger layer is fetched alone.",
    }),
    unpacks: integer({
      default: 8,
      min: 1,
      max: 256,
      unit: "layers",
      help: "Layers taken in at a time that containerd has fetched (Apply). Beside that, one thread a core works.",
    }),
  },
  disk: {
    high_watermark: integer({
      default: 90,
      min: 1,
      max: 100,
      unit: "per cent",
      help: "Above this use of the store's file system garbage is collected, and if that does not help new layers are refused. 100 is off.",
    }),
    low_watermark: integer({
      default: 85,
      min: 1,
      max: 100,
      unit: "per cent",
      help: "While the use is above this, garbage is collected at each interval, also when nothing was removed.",
    }),
    gc_interval: duration({
      default: 600_000,
      min: 10_000,
      max: 7 * 86_400_000,
      help: "Garbage is collected this often if anything was removed since.",
    }),
  },
  containerd: {
    address: path({
      default: "/run/containerd/containerd.sock",
      help: "containerd's socket, for its content service.",
    }),
    root: path({
      default: "/var/lib/containerd",
      help: "containerd's root. Where its content store can be read there, layers are read as files.",
    }),
  },
  exports: {
    mode: choice(["off", "layer", "image"], {
      default: "off",
      help: "Disks that are made and kept for virtual machines: none, one a layer, or one an image.",
    }),
    verity: choice(["none", "superblock", "bare"], {
      default: "none",
      help: "Whether a dm-verity tree is appended: with veritysetup's superblock, or without as nydus has it.",
    }),
    block_size: choice([512, 4096], { default: 4096, help: "Block size of the disks, bytes." }),
    when: choice(["pull", "demand"], {
      default: "demand",
      help: "When they are made: after the last layer of a chain is committed, or when they are first asked for (shale export).",
    }),
  },
} as const satisfies Readonly<Record<string, Readonly<Record<string, Spec<unknown>>>>>;

type Camel<K extends string> = K extends `${infer Head}_${infer Tail}` ? `${Head}${Capitalize<Camel<Tail>>}` : K;
type ValuesOf<T> = { readonly [K in keyof T & string as Camel<K>]: T[K] extends Spec<infer V> ? V : never };

/** Checked values of all options, keys in camelCase. */
export type Config = ValuesOf<typeof TOP> & {
  readonly [S in keyof typeof OPTIONS & string as Camel<S>]: ValuesOf<(typeof OPTIONS)[S]>;
};
