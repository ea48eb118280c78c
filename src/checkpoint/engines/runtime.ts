/** runc and crun on their own: state, bundle and CRIU's images are all there is, the metadata is made here. */
import { join } from "node:path";
import { ShaleError, shownValue } from "../../errors/index.ts";
import { findMount, makeDirectory, readFile } from "../../sys/index.ts";
import { MEMBER } from "../archive/sections.ts";
import { ask, type FindContainer, isObject, overlayDirectories, parseAnswer, textOf, writeDocument } from "./engine.ts";

const CONFIG_MAX = 16 * 1024 * 1024;

export const findRuntimeContainer: FindContainer = async (name, { program, signal }) => {
  const state = parseAnswer(await ask(`find container ${name}`, program, ["state", name], signal), program);
  if (state.status !== "running" && state.status !== "paused") {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot checkpoint ${name}: its state is ${shownValue(state.status)}`);
  }
  const bundle = textOf(state.bundle, "the bundle", program);
  const specification = readFile(join(bundle, "config.json"), CONFIG_MAX);
  const spec = parseAnswer(specification.toString(), "config.json");
  const root = isObject(spec.root) ? textOf(spec.root.path, "the root", program) : "rootfs";
  const rootfs = root.startsWith("/") ? root : join(bundle, root);
  const mount = findMount(rootfs);
  if (mount?.type !== "overlay") {
    throw new ShaleError("FAILED_PRECONDITION", `Cannot checkpoint ${name}: ${rootfs} is no overlay mount`, {
      hint: "Name the directories yourself, with shale checkpoint write",
    });
  }
  return {
    id: name,
    ...overlayDirectories(mount.superOptions, name),
    volumes: [],
    images: (workspace) => join(workspace, MEMBER.images),
    async checkpoint(workspace) {
      const images = join(workspace, MEMBER.images);
      makeDirectory(images);
      const args = ["checkpoint", "--image-path", images, "--work-path", workspace, name];
      await ask(`checkpoint ${name}`, program, args, signal);
      writeDocument(join(workspace, MEMBER.spec), specification);
      writeDocument(join(workspace, MEMBER.config), reducedConfig({ id: name, name, runtime: program }));
      return workspace;
    },
  };
};

/** The form of config.dump that CRI-O and containerd write, and checkpointctl reads: checkpointctl, lib/metadata.go. */
export function reducedConfig(facts: {
  readonly id: string;
  readonly name: string;
  readonly runtime: string;
  readonly image?: string;
}): Uint8Array {
  const { id, name, runtime, image = "" } = facts;
  const now = new Date().toISOString();
  const config = {
    ...{ id, name, rootfsImage: image, rootfsImageRef: image, rootfsImageName: image, runtime },
    ...{ checkpointedTime: now, restored: false },
  };
  return Buffer.from(`${JSON.stringify(config)}\n`);
}
