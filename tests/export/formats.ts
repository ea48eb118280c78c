/** Every format of export by one interface, for tests that ask the same of each. */
import { join } from "node:path";
import {
  type ExportProgress,
  exportComposefs,
  exportDisk,
  exportExt4,
  exportTar,
  exportTarfs,
  leastTarSize,
  publishTar,
} from "../../src/export/index.ts";
import type { ManifestRecord, StoreOperation } from "../../src/store/index.ts";

export interface Running {
  readonly signal?: AbortSignal;
  readonly progress?: ExportProgress;
}

export interface Format {
  readonly name: "disk" | "tarfs" | "composefs" | "tar" | "ext4";
  /** Name of one file that every run writes, below the place. */
  readonly target: (manifest: ManifestRecord) => string;
  /** Writes to a directory that is there. Hashes in this thread only, so that progress is told in the same order every time. */
  make(operation: StoreOperation, manifest: ManifestRecord, place: string, running?: Running): Promise<unknown>;
}

/** Calls `at` once, when progress was told for the `step`th time; counts how often it is. */
export class Steps implements ExportProgress {
  told = 0;
  readonly #step: number;
  readonly #at: () => void;

  constructor(step: number, at: () => void) {
    this.#step = step;
    this.#at = at;
  }

  readonly step = () => this.#tell();
  readonly advance = () => this.#tell();

  #tell(): void {
    if (++this.told === this.#step) this.#at();
  }
}

const RUNNING = { verity: "superblock", jobs: 1 } as const;

export const FORMATS: readonly Format[] = [
  {
    name: "disk",
    target: () => "disk",
    make: (operation, manifest, place, running) =>
      exportDisk(operation, { manifest, layer: undefined }, join(place, "disk"), { ...RUNNING, ...running }),
  },
  {
    name: "tarfs",
    target: ({ layers }) => `${layers.at(-1)!.digest.slice("sha256:".length)}.image.disk`,
    make: (operation, manifest, place, running) =>
      exportTarfs(operation, manifest, place, { disks: "both", verity: true, jobs: 1, ...running }),
  },
  {
    name: "composefs",
    target: () => "image.cfs",
    make: (operation, manifest, place, running) =>
      exportComposefs(operation, manifest, join(place, "image.cfs"), running),
  },
  {
    name: "tar",
    target: () => "image.tar",
    make: (operation, manifest, place, running = {}) => {
      const source = { manifest, layer: undefined };
      const pieces = told(exportTar(operation, source), running.progress);
      const atLeast = leastTarSize(operation, source);
      return publishTar(join(place, "image.tar"), pieces, { ...running, atLeast });
    },
  },
  {
    name: "ext4",
    target: () => "disk.ext4",
    make: (operation, manifest, place, running) =>
      exportExt4(operation, { manifest, layer: undefined }, join(place, "disk.ext4"), { ...RUNNING, ...running }),
  },
];

/** A tar tells no progress of its own: who reads its pieces can. */
function* told(pieces: Iterable<Uint8Array>, progress: ExportProgress | undefined): Generator<Uint8Array> {
  progress?.step("writing the tar", 0);
  for (const piece of pieces) {
    progress?.advance(piece.length);
    yield piece;
  }
}
