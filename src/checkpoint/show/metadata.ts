/**
 * What the metadata members say of a container. config.dump: checkpointctl lib/metadata.go (ContainerConfig), of which
 * podman's own, larger config has the same keys. spec.dump: the OCI runtime specification's config.md. The texts are the
 * archive's: whoever prints them escapes them.
 */
import { decodeJson, decodeJsonValue } from "../../oci/index.ts";

/** A metadata member that is read as a whole: podman's config and spec have about 25 kB each. */
export const MAX_METADATA = 16 * 1024 * 1024;
/** Elements of a list that is shown; more are an error. */
const MAX_LIST = 1_000_000;

export interface ContainerFacts {
  readonly id?: string;
  readonly name?: string;
  /** Name of the image. */
  readonly image?: string;
  /** As the user asked for it, where that is another. */
  readonly requestedImage?: string;
  /** Its name with a digest, as kubelets have it. */
  readonly imageReference?: string;
  readonly imageId?: string;
  readonly runtime?: string;
  readonly created?: string;
  readonly checkpointed?: string;
}

/** config.dump */
export function decodeContainer(bytes: Uint8Array): ContainerFacts {
  const root = decodeJson(bytes, "config.dump", MAX_METADATA);
  const text = (...keys: string[]) =>
    keys.map((key) => optionalText(root.get(key).value)).find((value) => value !== undefined);
  return definedOnly({
    id: text("id"),
    name: text("name"),
    image: text("rootfsImageName", "rootfsImage"),
    requestedImage: text("rawImageName", "rootfsImage"),
    imageReference: text("rootfsImageRef"),
    imageId: text("rootfsImageID"),
    runtime: text("runtime"),
    created: text("createdTime"),
    checkpointed: text("checkpointedTime"),
  });
}

export interface SpecFacts {
  readonly command?: readonly string[];
  readonly hostname?: string;
  /** Who ran the container: "podman", "cri-o", "containerd". */
  readonly engine?: string;
  readonly pod?: { readonly name: string; readonly namespace?: string; readonly uid?: string };
  readonly mounts: readonly { readonly destination: string; readonly type?: string; readonly source?: string }[];
}

/** spec.dump; the annotations are those by which checkpointctl tells engines and pods. */
export function decodeSpec(bytes: Uint8Array): SpecFacts {
  const root = decodeJson(bytes, "spec.dump", MAX_METADATA);
  const process = root.get("process");
  const annotations = root.get("annotations").stringMap();
  const first = (...keys: string[]) =>
    keys.map((key) => annotations[key]).find((value) => value !== undefined && value !== "");
  const manager = first("io.container.manager");
  const podName = first("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name");
  const mounts = root.get("mounts").list(MAX_LIST);
  return definedOnly({
    command: process.isAbsent ? undefined : process.get("args").strings(MAX_LIST),
    hostname: optionalText(root.get("hostname").value),
    engine:
      manager === "libpod"
        ? "podman"
        : (manager ?? (first("io.kubernetes.cri.container-type") === undefined ? undefined : "containerd")),
    pod:
      podName === undefined
        ? undefined
        : definedOnly({
            name: podName,
            namespace: first("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
            uid: first("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"),
          }),
    mounts: mounts.map((mount) =>
      definedOnly({
        destination: mount.get("destination").string(),
        type: optionalText(mount.get("type").value),
        source: optionalText(mount.get("source").value),
      }),
    ),
  });
}

/** deleted.files: absolute paths in the container. */
export function decodeDeleted(bytes: Uint8Array): string[] {
  return decodeJsonValue(bytes, "deleted.files", MAX_METADATA).strings(MAX_LIST);
}

/** network.status of podman: addresses by network. `null` without a network. */
export function decodeNetworks(bytes: Uint8Array): Record<string, readonly string[]> {
  const root = decodeJsonValue(bytes, "network.status", MAX_METADATA);
  const result: Record<string, readonly string[]> = Object.create(null);
  for (const name of root.keys()) {
    const interfaces = root.get(name).get("interfaces");
    result[name] = interfaces
      .keys()
      .flatMap((key) => interfaces.get(key).get("subnets").list(MAX_LIST))
      .map((subnet) => optionalText(subnet.get("ipnet").value))
      .filter((address) => address !== undefined);
  }
  return result;
}

/** What is there and is a text: a member of another type tells nothing, and hides nothing else. */
function optionalText(value: unknown): string | undefined {
  return typeof value === "string" && value !== "" ? value : undefined;
}

type DefinedOnly<T> = { [K in keyof T as undefined extends T[K] ? never : K]: T[K] } & {
  [K in keyof T as undefined extends T[K] ? K : never]?: Exclude<T[K], undefined>;
};

function definedOnly<T extends object>(value: T): DefinedOnly<T> {
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== undefined)) as DefinedOnly<T>;
}
