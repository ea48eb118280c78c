/**
 * podman: it checkpoints by CRIU, and is kept from what costs time: its own export of the root file system, of volumes, and the
 * copy of CRIU's images.
 *
 * podman writes config.dump, which its restore needs whole, only when it exports. So it exports to nowhere, a null device of its
 * own (podman changes the mode of what it writes), without root file system and volumes; the originals are in the container's bundle, where --keep leaves them.
 */
import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { findFile, withNullDevice } from "../../sys/index.ts";
import { ask, type FindContainer, isObject, type Json, parseAnswer, textOf } from "./engine.ts";

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
    async checkpoint(workspace) {
      const nowhere = join(workspace, "export");
      const flags = ["--keep", "--ignore-rootfs", "--ignore-volumes", "--compress=none", "--export", nowhere];
      const argv = [...runtimeOf(container), "container", "checkpoint", ...flags, "--", id];
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
