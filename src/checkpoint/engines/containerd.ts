/** containerd by ctr: the snapshot of the container tells the overlay, the task is checkpointed by its shim. */
import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import { makeDirectory } from "../../sys/index.ts";
import { MEMBER } from "../archive/sections.ts";
import { ask, type FindContainer, isObject, overlayDirectories, parseAnswer, textOf, writeDocument } from "./engine.ts";
import { reducedConfig } from "./runtime.ts";

export const findContainerdContainer: FindContainer = async (name, { program, namespace, signal }) => {
  const ctr = (act: string, ...args: readonly string[]) => ask(act, program, ["-n", namespace, ...args], signal);
  const info = parseAnswer(await ctr(`find container ${name}`, "containers", "info", name), program);
  const tasks = await ctr(`find the task of ${name}`, "tasks", "ls");
  const running = tasks.split("\n").some((line) => {
    const [task, , status] = line.trim().split(/\s+/);
    return task === name && (status === "RUNNING" || status === "PAUSED");
  });
  if (!running) {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot checkpoint ${name}: it is not running`, {
      hint: `See ${program} -n ${namespace} tasks ls`,
    });
  }
  const snapshotter = textOf(info.Snapshotter, "the snapshotter", program);
  const key = textOf(info.SnapshotKey, "the snapshot", program);
  const mounts = await ctr(`find the mounts of ${name}`, "snapshots", "--snapshotter", snapshotter, "mounts", "/", key);
  const spec = isObject(info.Spec) ? info.Spec : undefined;
  const runtime = isObject(info.Runtime) && typeof info.Runtime.Name === "string" ? info.Runtime.Name : "";
  return {
    id: name,
    ...overlayDirectories(mountOptions(mounts), name),
    volumes: [],
    async checkpoint(workspace) {
      const images = join(workspace, MEMBER.images);
      makeDirectory(images);
      await ctr(
        `checkpoint ${name}`,
        "tasks",
        "checkpoint",
        "--exit",
        "--image-path",
        images,
        "--work-path",
        workspace,
        name,
      );
      if (spec !== undefined) writeDocument(join(workspace, MEMBER.spec), Buffer.from(`${JSON.stringify(spec)}\n`));
      const image = typeof info.Image === "string" ? info.Image : "";
      writeDocument(join(workspace, MEMBER.config), reducedConfig({ id: name, name, runtime, image }));
      return workspace;
    },
  };
};

/** Of "mount -t overlay overlay / -o index=off,workdir=...,upperdir=...,lowerdir=a:b". */
export function mountOptions(command: string): string[] {
  const line = command.split("\n").find((each) => / -t overlay /.test(each));
  const options = line === undefined ? undefined : / -o (\S+)/.exec(line)?.[1];
  return options?.split(",") ?? [];
}
