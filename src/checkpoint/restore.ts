/**
 * Restoring a checkpoint archive, of any dialect and compression, into new directories.
 *
 * Guarantees: nothing has its name before the whole archive was read and its digests were right; a failure leaves nothing,
 * a kill what the next restore to the same place removes. Nothing is written outside of the targets. Memory images are never
 * readable for others. Decisions: docs/adr/0026 and 0027.
 */
import { join, resolve } from "node:path";
import { type ByteString, displayBytes, fromUtf8 } from "../bytes/index.ts";
import { FormatError, ShaleError } from "../errors/index.ts";
import {
  type ArchiveEntry,
  type ArchiveIndex,
  type ArchiveMember,
  type CheckpointArchive,
  compareDigests,
  decodeIndex,
  INDEX_SIZE_MAX,
  isNested,
  MEMBER,
  SectionDigester,
  type SectionDigests,
} from "./archive/index.ts";
import {
  type BindMount,
  containerName,
  DOCUMENT_MAX,
  parseBindMounts,
  volumeDestinations,
  writeBundleConfig,
} from "./restore/bundle.ts";
import { Staging } from "./restore/staging.ts";
import { PLAIN_DIRECTORY, TreeWriter, type WrittenTotals } from "./restore/tree-writer.ts";
import { UpperWriter } from "./restore/upper-writer.ts";
import { LowerLayers } from "./sources/lower.ts";

export interface RestoreTargets {
  /** A new upper directory; absent or empty. Without it, changes of the root file system are passed over. */
  readonly upper?: string;
  /** Lower directories of the overlay to be, uppermost first; may be none. */
  readonly lower?: readonly string[];
  /** A new bundle with CRIU's images, the metadata and config.json. */
  readonly bundle?: string;
  readonly volumes?: readonly { readonly name: string; readonly directory: string }[];
  /** /dev/shm; in the bundle as "shm" unless given. */
  readonly shm?: string;
}

export interface RestoreOptions {
  /** Leave out volumes that no directory is named for. */
  readonly ignoreVolumes?: boolean;
  /** Also read data that could be moved unseen, where the archive has a digest of it. On by default. */
  readonly verifyData?: boolean;
  /** Makes everything durable before it gets its name. */
  readonly sync?: boolean;
  readonly signal?: AbortSignal;
}

export interface RestoreResult {
  readonly files: number;
  /** Bytes of file content; of those, shared with the archive. */
  readonly bytes: number;
  readonly cloned: number;
  readonly whiteouts: number;
  readonly volumes: readonly string[];
  /** Sections whose digest was there and is right; with data, all of it is. */
  readonly verified: readonly { readonly section: string; readonly data: boolean }[];
  /** The container's id in the archive. */
  readonly container: string | undefined;
}

/**
 * Restores `archive` to `targets`. Nothing has its name before all of it was read and what digests it has were right; after a
 * failure nothing is left. DATA_LOSS for a truncated or changed archive; FormatError for one that is malformed or hostile.
 */
export async function restoreCheckpoint(
  archive: CheckpointArchive,
  targets: RestoreTargets,
  options: RestoreOptions = {},
): Promise<RestoreResult> {
  const { signal } = options;
  // With an archive that can be gone through twice, the index at its end is known first: it costs the headers of members.
  const known = archive.access === "seek" ? await findIndex(archive) : undefined;
  using opened = new DisposableStack();
  const staging = opened.use(new Staging());
  const lower = opened.use(new LowerLayers(targets.lower ?? []));
  const needsData = (options.verifyData ?? true) && known !== undefined && known.digests.some(hasData);
  const settings = { inKernel: !needsData, ...(signal && { signal }) };
  const run = new Restore(targets, options, staging, lower, settings, opened);
  const digester = new SectionDigester({ data: needsData || archive.access === "read" });
  let index = known;
  for await (const member of archive.members({ observer: digester })) {
    if (index !== undefined && index !== known)
      throw new FormatError("checkpoint archive", "shale.json", "is not the last member");
    if (member.section.kind === "index") {
      index = await readIndex(member);
      checkSize(index, member);
    } else await run.restore(member);
  }
  const verified = index === undefined ? [] : compare(index, digester.finish());
  const result = run.finish(index);
  staging.publish({ durable: options.sync ?? false });
  return { ...result, verified };
}

function hasData({ data }: SectionDigests): boolean {
  return data !== undefined && data !== NO_DATA;
}

/** sha256 of nothing. */
const NO_DATA = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

async function findIndex(archive: CheckpointArchive): Promise<ArchiveIndex | undefined> {
  for await (const member of archive.members()) {
    if (member.section.kind === "index") return await readIndex(member);
  }
  return undefined;
}

async function readIndex(member: ArchiveMember): Promise<ArchiveIndex> {
  return decodeIndex(await member.content.bytes(INDEX_SIZE_MAX));
}

function checkSize({ size }: ArchiveIndex, { entry }: ArchiveMember): void {
  if (entry.headerOffset === size) return;
  throw new FormatError(
    "checkpoint archive",
    "shale.json",
    `begins at byte ${entry.headerOffset} in place of ${size}`,
    {
      code: "DATA_LOSS",
      hint: "The archive was changed since shale wrote it",
    },
  );
}

/** Throws DATA_LOSS for a section that is not what was written, that is missing, or that was added. */
function compare(index: ArchiveIndex, found: readonly SectionDigests[]): RestoreResult["verified"] {
  return compareDigests(index.digests, found).map(({ section, problem, data }) => {
    const name = displayBytes(section.name);
    if (problem === undefined) return { section: name, data };
    throw new ShaleError("DATA_LOSS", `Cannot restore the checkpoint: section ${name} ${problem}`, {
      hint: "The archive was changed since it was written: get it again from where it was made",
    });
  });
}

/** One restore under way: where each section goes. */
class Restore {
  readonly #targets: RestoreTargets;
  readonly #options: RestoreOptions;
  readonly #staging: Staging;
  readonly #settings: { readonly inKernel: boolean; readonly signal?: AbortSignal };
  readonly #opened: DisposableStack;
  readonly #upper: UpperWriter | undefined;
  readonly #bundle: TreeWriter | undefined;
  readonly #bundleStaging: string | undefined;
  readonly #writers: TreeWriter[] = [];
  readonly #volumes: string[] = [];
  /** Where the container sees it -> where it will be on the host. */
  readonly #sources = new Map<string, string>();
  #compressedRootfs = false;
  #config: Uint8Array | undefined;
  #spec: Uint8Array | undefined;
  #binds: readonly BindMount[] = [];

  constructor(
    targets: RestoreTargets,
    options: RestoreOptions,
    staging: Staging,
    lower: LowerLayers,
    settings: { readonly inKernel: boolean; readonly signal?: AbortSignal },
    opened: DisposableStack,
  ) {
    this.#targets = targets;
    this.#options = options;
    this.#staging = staging;
    this.#settings = settings;
    this.#opened = opened;
    if (targets.bundle !== undefined) {
      this.#bundleStaging = staging.add(resolve(targets.bundle), "the bundle");
      this.#bundle = this.#tree(this.#bundleStaging, 0o700);
    }
    if (targets.upper !== undefined) {
      const path = staging.add(resolve(targets.upper), "the upper directory");
      this.#upper = opened.use(new UpperWriter(path, lower, settings));
    }
  }

  async restore(member: ArchiveMember): Promise<void> {
    const { section, path, content } = member;
    switch (section.kind) {
      case "rootfs":
        if (this.#upper === undefined) await passOver(member);
        else await this.#restoreRootfs(member, this.#upper);
        return;
      case "rootfs-inline":
        if (this.#upper === undefined) return;
        await this.#upper.add({ ...member, path: path.slice(MEMBER.inline.length + 1) }, false);
        return;
      case "deleted": {
        if (this.#upper === undefined) return;
        const bytes = await content.bytes(DELETED_SIZE_MAX);
        this.#upper.addDeletedFiles(bytes);
        return;
      }
      case "volume":
        await this.#restoreVolume(member);
        return;
      case "shm":
        await this.#restoreShm(member);
        return;
      case "config":
        this.#config = await this.#document(member);
        return;
      case "spec":
        this.#spec = await this.#document(member);
        return;
      case "mounts":
        this.#binds = parseBindMounts(await this.#document(member));
        return;
      default:
        await this.#bundle?.add(member);
    }
  }

  finish(index: ArchiveIndex | undefined): Omit<RestoreResult, "verified"> {
    if (index !== undefined) this.#upper?.addOpaque(index.opaque);
    this.#upper?.finish();
    const totals: WrittenTotals = { files: 0, bytes: 0, cloned: 0 };
    for (const part of [this.#upper?.totals, ...this.#writers.map((writer) => writer.totals)]) {
      totals.files += part?.files ?? 0;
      totals.bytes += part?.bytes ?? 0;
      totals.cloned += part?.cloned ?? 0;
    }
    const { bundle } = this.#targets;
    if (bundle !== undefined && this.#bundleStaging !== undefined && this.#spec !== undefined) {
      const destinations = volumeDestinations(this.#config);
      for (const { name, directory } of this.#targets.volumes ?? []) {
        const destination = destinations.get(name);
        if (destination !== undefined) this.#sources.set(destination, resolve(directory));
      }
      const options = { staging: this.#bundleStaging, path: resolve(bundle), bindMounts: this.#binds };
      writeBundleConfig(this.#spec, { ...options, sources: this.#sources });
    }
    for (const writer of this.#writers) writer.finish();
    return {
      ...totals,
      whiteouts: this.#upper?.whiteouts ?? 0,
      volumes: this.#volumes,
      container: containerName(this.#config),
    };
  }

  async #restoreRootfs(member: ArchiveMember, upper: UpperWriter): Promise<void> {
    const nested = await member.open();
    // containerd keeps the layer as it would push it: compressed, deletions as names.
    this.#compressedRootfs = nested.compression !== "none";
    for await (const file of nested.entries()) {
      const adding = upper.add(file, this.#compressedRootfs);
      if (adding !== undefined) await adding;
    }
  }

  async #restoreVolume(member: ArchiveMember): Promise<void> {
    const target = this.#targets.volumes?.find(({ name }) => fromUtf8(name) === member.section.name);
    const name = displayBytes(member.section.name);
    if (target !== undefined) {
      this.#volumes.push(target.name);
      await this.#restoreTree(member, this.#staging.add(resolve(target.directory), `volume ${name}`), 0o755);
      return;
    }
    if (this.#options.ignoreVolumes || this.#bundle === undefined) {
      await passOver(member);
      return;
    }
    throw new ShaleError(
      "FAILED_PRECONDITION",
      `Cannot restore the checkpoint: it has volume ${name}, and no place for it`,
      {
        hint: `Add --volume ${name}=DIR, or --ignore-volumes`,
      },
    );
  }

  async #restoreShm(member: ArchiveMember): Promise<void> {
    const { shm, bundle } = this.#targets;
    if (shm === undefined && bundle === undefined) {
      await passOver(member);
      return;
    }
    const path = shm === undefined ? join(resolve(bundle!), SHM) : resolve(shm);
    this.#sources.set("/dev/shm", path);
    if (shm !== undefined) {
      await this.#restoreTree(member, this.#staging.add(path, "/dev/shm"), 0o1777);
      return;
    }
    const nested = await member.open();
    this.#bundle!.addDirectory(SHM, { ...PLAIN_DIRECTORY, mode: 0o1777 });
    for await (const file of nested.entries()) {
      const inside = (path: ByteString) => (path === "" ? SHM : `${SHM}/${path}`);
      const { entry } = file;
      const moved: ArchiveEntry = {
        path: inside(file.path),
        content: file.content,
        entry: entry.type === "hardlink" ? { ...entry, linkTarget: inside(entry.linkTarget) } : entry,
      };
      await this.#bundle!.add(moved);
    }
  }

  async #restoreTree(member: ArchiveMember, path: string, mode: number): Promise<void> {
    if (!isNested(member.section.kind)) throw new RangeError(`a tree in section ${member.section.kind}`);
    const tree = this.#tree(path, mode);
    const nested = await member.open();
    for await (const file of nested.entries()) await tree.add(file);
  }

  #tree(path: string, mode: number): TreeWriter {
    const parent = (below: ByteString) => (below === "" ? { ...PLAIN_DIRECTORY, mode } : PLAIN_DIRECTORY);
    const writer = this.#opened.use(new TreeWriter(path, { ...this.#settings, parent }));
    this.#writers.push(writer);
    return writer;
  }

  /** Read for what is in it, and kept in the bundle as it is. */
  async #document(member: ArchiveMember): Promise<Uint8Array> {
    const bytes = await member.content.bytes(DOCUMENT_MAX);
    await this.#bundle?.addBytes(member, bytes);
    return bytes;
  }
}

/** A nested tar that is not wanted is gone through all the same: its digest counts. */
async function passOver(member: ArchiveMember): Promise<void> {
  for await (const { content } of (await member.open()).entries()) await content.skip();
}

/** deleted.files of a million paths. */
const DELETED_SIZE_MAX = 256 * 1024 * 1024;
const SHM = "shm";
