import { join } from "node:path";
import { ShaleError } from "../../errors/index.ts";
import type { MountRecord, Store } from "../../store/index.ts";
import { displayName, type FoundImage, findImage } from "../../images/find.ts";
import type { MountStatus } from "../../images/mount.ts";
import { formatTable, formatTime } from "../format.ts";
import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { UsageError } from "../usage.ts";
import { openStore } from "./store-access.ts";
import { type Context, defineCommand, type OptionTable } from "../command.ts";
import { PLATFORM, REGISTRY } from "./options.ts";
import type { PulledImage } from "./pull.ts";

const OPTIONS = {
  platform: PLATFORM,
  rw: { type: "flag", help: "Make it writable; changes go to an upper directory and the image stays as it is" },
  stacked: { type: "flag", help: "One mount per layer and an overlay of them, instead of one merged image" },
  pull: { type: "flag", help: "Fetch the image first where the store does not have it" },
  ...REGISTRY,
} as const satisfies OptionTable;

export const mount = defineCommand({
  name: "mount",
  summary: "Mount an image, or list mounts",
  description: `
Mounts the image at DIR with the kernel's EROFS: read-only, complete at once, and with no process of shale behind it.
With --rw, an overlay whose changes are kept in the store until umount. The mount keeps the image's bytes in the store,
also when the image is removed. Mounting what is mounted there already is success.

With --pull, an image that the store does not have is fetched before, as shale pull does, from where REF says (the options
about registries are for that); in one command this is quicker than in two. An image that is there is not asked for again: shale pull brings a newer one.

Without arguments: lists the mounts. Needs root, except for listing.
`,
  arguments: [
    { name: "REF", help: "Image to mount", optional: true, completes: "image" },
    { name: "DIR", help: "Existing directory to mount at", optional: true, completes: "directory" },
  ],
  options: OPTIONS,
  examples: [
    { command: "shale mount python:3.12 /mnt/python", help: "Read-only, as one file system" },
    { command: "shale mount --rw python:3.12 /mnt/work", help: "With a writable upper directory" },
    { command: "shale mount --pull python:3.12 /mnt/python", help: "From the registry to files in one command" },
    { command: "shale mount", help: "What is mounted where" },
  ],
  async run(context) {
    const { values, signal } = context;
    const [ref, directory] = context.positionals;
    if (ref === undefined) {
      if (values.rw || values.stacked || values.pull || values.platform !== undefined) {
        throw new UsageError(
          "Cannot mount: REF and DIR are missing",
          "without options, shale mount lists what is mounted",
        );
      }
      const { listMounts } = await import("../../images/mount.ts");
      await using store = await openStore(context);
      const mounts = (await listMounts(store, { signal })).map(describeMount);
      await emit(context, { mounts }, (value) => formatMounts(value.mounts));
      return undefined;
    }
    if (directory === undefined) {
      throw new UsageError(`Cannot mount ${ref}: DIR is missing`, `shale mount ${ref} DIR, with an existing directory`);
    }
    const { mountImage, requireMountPoint } = await import("../../images/mount.ts");
    if (values.pull) {
      // before the store is made, and before anything is fetched
      requireMountPoint(ref, directory);
      await requireMountRight(`mount ${ref} at ${directory}`);
    }
    await using store = await openStore(context, { create: values.pull });
    const there = values.pull ? findOrNothing(store, ref, values.platform) : undefined;
    const pulled = values.pull && there === undefined ? await pullForMount(context, store, ref) : undefined;
    const found = there ?? findImage(store, pulled?.name ?? ref, values.platform);
    await requireMountRight(`mount ${displayName(found.image.name)} at ${directory}`);
    const { record, already } = await mountImage(store, found, directory, {
      writable: values.rw,
      stacked: values.stacked,
      signal,
    });
    const name = singleLine(displayName(record.image));
    const how = record.writable === undefined ? "read-only" : "writable";
    await emit(
      context,
      { mount: describeMount(record), already, pulled },
      ({ mount }) => `${name} is ${already ? "already " : ""}mounted at ${singleLine(mount.target)}, ${how}`,
    );
    return undefined;
  },
});

function findOrNothing(store: Store, ref: string, platform: string | undefined): FoundImage | undefined {
  try {
    return findImage(store, ref, platform);
  } catch (error) {
    if (ShaleError.is(error, "NOT_FOUND")) return undefined;
    throw error;
  }
}

/** Told on standard output as soon as it is there: what follows may fail. */
async function pullForMount(context: Context<typeof OPTIONS>, store: Store, ref: string): Promise<PulledImage> {
  const { values, log, progress, signal } = context;
  const startMs = performance.now();
  const { parseImageSource, parsePlatform, platformOfNode } = await import("../../oci/index.ts");
  const { registryAccess } = await import("./registry-access.ts");
  const { hostsOf, withOrigin } = await import("./origin-access.ts");
  const { pullImage } = await import("../../images/pull.ts");
  const { describePull, formatPull } = await import("./pull.ts");
  const source = parseImageSource(ref);
  await using registry = registryAccess(values, { log, hosts: () => hostsOf([source]) });
  const result = await withOrigin(source, { registry, signal }, (origin) =>
    pullImage(store, origin, {
      signal,
      progress,
      merge: !values.stacked,
      ...(values.platform === undefined
        ? {}
        : { platform: parsePlatform(values.platform, platformOfNode(process.arch)) }),
    }),
  );
  const pulled = describePull(result, performance.now() - startMs);
  if (!context.json) await context.stdout.write(`${formatPull(pulled)}\n`);
  return pulled;
}

/** PERMISSION_DENIED before anything is written, and in words that say what to do instead. */
export async function requireMountRight(act: string): Promise<void> {
  const { Capability, hasCapability } = await import("../../sys/index.ts");
  if (hasCapability(Capability.SYS_ADMIN)) return;
  throw new ShaleError("PERMISSION_DENIED", `Cannot ${act}: this process may not mount (it lacks CAP_SYS_ADMIN)`, {
    hint: "Run it as root; shale ls, cat, stat and diff read images without mounting",
  });
}

export interface MountRow {
  readonly target: string;
  readonly image: string;
  readonly manifest: string;
  readonly mode: "merged" | "stacked";
  /** Directory of the changes of a writable mount. */
  readonly upper: string | undefined;
  readonly state: "mounted" | "elsewhere";
  readonly createdAt: Date;
}

export function describeMount(mount: MountRecord & { readonly state?: MountStatus["state"] }): MountRow {
  const { target, image, manifest, mode, writable, createdAt, state = "mounted" } = mount;
  return { target, image, manifest, mode, upper: writable && join(writable, "upper"), state, createdAt };
}

export function formatMounts(mounts: readonly MountRow[]): string {
  return formatTable(
    [
      { header: "DIRECTORY", cell: (mount) => singleLine(mount.target) },
      { header: "IMAGE", cell: (mount) => singleLine(displayName(mount.image)) },
      { header: "ACCESS", cell: (mount) => (mount.upper === undefined ? "read-only" : "writable") },
      { header: "FORM", cell: (mount) => mount.mode },
      { header: "SINCE", cell: (mount) => formatTime(mount.createdAt) },
      { header: "", cell: (mount) => (mount.state === "elsewhere" ? "in another mount namespace" : "") },
    ],
    mounts,
  );
}
