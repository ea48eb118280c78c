/**
 * podman: it checkpoints by CRIU, and is kept from what costs time: its own export of the root file system, of volumes, and the
 * copy of CRIU's images.
 *
 * podman writes config.dump, which its restore needs whole, only when it exports. So what it would say is taken from podman's
 * database, and the container's directories too. Where that can't be, podman is asked for them, and exports to nowhere: a null device of
 * its own (podman changes the mode of what it writes), without root file system and volumes. The originals are in the container's bundle
 * both ways, where --keep leaves them.
 */
import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { findFile, mountInfo, readFile, unlink, withNullDevice } from "../../sys/index.ts";
// Not by index.ts: podman's program is started before what reads archives is loaded.
import { MEMBER } from "../archive/sections.ts";
import {
  ask,
  type FindContainer,
  isObject,
  type Json,
  parseAnswer,
  type RunningContainer,
  textOf,
  writeDocument,
} from "./engine.ts";
import { findPodmanRecord, readPodmanConfig } from "./podman-database.ts";

const SPECIFICATION_MAX = 16 * 1024 * 1024;

/** What `save` needs to know of a container before podman checkpoints it. */
interface Found {
  readonly id: string;
  readonly bundle: string;
  readonly upper: string;
  readonly lower: readonly string[];
  readonly volumes: RunningContainer["volumes"];
  /** Flags that name the runtime that the container was made with: podman's own default may be another one by now. */
  readonly runtime: readonly string[];
  /** For config.dump; undefined where podman has to make that itself. */
  readonly config: Uint8Array | undefined;
}

export const findPodmanContainer: FindContainer = async (name, { program, signal }) => {
  const found = findInDatabase(name) ?? (await askPodman(name, program, signal));
  const { id, bundle, upper, lower, volumes, runtime, config } = found;
  const flags = [...runtime, "container", "checkpoint", "--keep"];
  return {
    id,
    upper,
    lower,
    volumes,
    images: () => join(bundle, MEMBER.images),
    async checkpoint(workspace) {
      if (config !== undefined) {
        await ask(`checkpoint ${name}`, program, [...flags, "--", id], signal);
        replaceDocument(join(bundle, "config.dump"), config);
        replaceDocument(join(bundle, "spec.dump"), readFile(join(bundle, "config.json"), SPECIFICATION_MAX));
        return bundle;
      }
      const nowhere = join(workspace, "export");
      const argv = [...flags, "--ignore-rootfs", "--ignore-volumes", "--compress=none", "--export", nowhere, "--", id];
      await withNullDevice(nowhere, (stop) =>
        ask(`checkpoint ${name}`, program, argv, signal === undefined ? stop : AbortSignal.any([signal, stop])),
      );
      if (findFile(join(bundle, "config.dump")) === undefined) {
        throw new ShaleError("INTERNAL", `Cannot find what podman wrote: ${bundle} has no config.dump`);
      }
      return bundle;
    },
  };
};

function findInDatabase(name: string): Found | undefined {
  const record = findPodmanRecord(name, mountInfo());
  return record && { ...record, volumes: [], runtime: ["--runtime", record.runtime] };
}

async function askPodman(name: string, program: string, signal: AbortSignal | undefined): Promise<Found> {
  const answer = await ask(`find container ${name}`, program, ["container", "inspect", "--", name], signal);
  const container = parseAnswer(answer, program);
  const id = textOf(container.Id, "the id", program);
  const state = isObject(container.State) ? container.State : {};
  if (state.Running !== true) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot checkpoint ${name}: it is not running`, {
      hint: "Only what runs has a state to save",
    });
  }
  const bundle = textOf(container.StaticDir, "the bundle", program);
  const driver = isObject(container.GraphDriver) ? container.GraphDriver : {};
  const data = isObject(driver.Data) ? driver.Data : {};
  if (driver.Name !== "overlay" || typeof data.UpperDir !== "string" || typeof data.LowerDir !== "string") {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot checkpoint ${name}: podman keeps it in no overlay`, {
      hint: "shale takes changes from the upper directory of an overlay: use podman container checkpoint -e",
    });
  }
  const host = isObject(container.HostConfig) ? container.HostConfig : {};
  return {
    id,
    bundle,
    upper: data.UpperDir,
    lower: data.LowerDir.split(":"),
    volumes: volumesOf(container),
    runtime: runtimeOf(container),
    // One that goes away with its processes has a checkpoint only where podman exports.
    config: host.AutoRemove === false ? readPodmanConfig(id, bundle) : undefined,
  };
}

/** An earlier checkpoint may have left one. */
function replaceDocument(path: string, bytes: Uint8Array): void {
  if (findFile(path) !== undefined) unlink(path);
  writeDocument(path, bytes);
}

function runtimeOf(container: Json): readonly string[] {
  const { OCIRuntime: runtime } = container;
  return typeof runtime === "string" && runtime !== "" ? ["--runtime", runtime] : [];
}

function volumesOf(container: Json): { name: string; directory: string }[] {
  const mounts: readonly unknown[] = Array.isArray(container.Mounts) ? container.Mounts : [];
  return mounts.flatMap((mount) => {
    if (!isObject(mount) || mount.Type !== "volume") return [];
    const { Name: name, Source: directory } = mount;
    return typeof name === "string" && typeof directory === "string" ? [{ name, directory }] : [];
  });
}
