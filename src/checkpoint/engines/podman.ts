/**
 * podman: it checkpoints by CRIU, and is kept from what costs time: its own export of the root file system, of volumes, and the
 * copy of CRIU's images.
 *
 * podman writes config.dump, which its restore needs whole, only when it exports. So what it would say is taken from podman's
 * database; where that can't be, podman exports to nowhere, a null device of its own (podman changes the mode of what it writes), without
 * root file system and volumes. The originals are in the container's bundle both ways, where --keep leaves them.
 */
import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { findFile, readFile, unlink, withNullDevice } from "../../sys/index.ts";
import { MEMBER } from "../archive/index.ts";
import { ask, type FindContainer, isObject, type Json, parseAnswer, textOf, writeDocument } from "./engine.ts";

const SPECIFICATION_MAX = 16 * 1024 * 1024;

export const findPodmanContainer: FindContainer = async (name, { program, signal }) => {
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
  return {
    id,
    upper: data.UpperDir,
    lower: data.LowerDir.split(":"),
    volumes: volumesOf(container),
    images: () => join(bundle, MEMBER.images),
    async checkpoint(workspace) {
      const config = await configOf(container, id, bundle);
      const flags = [...runtimeOf(container), "container", "checkpoint", "--keep"];
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

/** For config.dump; undefined where podman has to make that itself. */
async function configOf(container: Json, id: string, bundle: string): Promise<Uint8Array | undefined> {
  const host = isObject(container.HostConfig) ? container.HostConfig : {};
  // One that goes away with its processes has a checkpoint only where podman exports.
  if (host.AutoRemove !== false) return undefined;
  const { readPodmanConfig } = await import("./podman-database.ts");
  return readPodmanConfig(id, bundle);
}

/** An earlier checkpoint may have left one. */
function replaceDocument(path: string, bytes: Uint8Array): void {
  if (findFile(path) !== undefined) unlink(path);
  writeDocument(path, bytes);
}

/** The runtime that the container was made with: podman's own default may be another one by now. */
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
