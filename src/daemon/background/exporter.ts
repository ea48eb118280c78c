/**
 * Disks for virtual machines, made of what containerd pulls, as `[exports]` says; the counterpart of nydus-snapshotter's export_mode.
 * They come into the export cache of the store, which df, gc and rm know. One after another, in the background: a call never waits.
 */
import type { ExportPolicy } from "../../export/index.ts";
import type { DiffId } from "../../oci/index.ts";
import { isUppermost, type Labels, type Snapshotter } from "../../snapshotter/index.ts";
import type { Config } from "../config/index.ts";
import { runInBackground } from "./job.ts";

/** Chains that wait; what is asked for beyond that is made when it is asked for again. */
const MAX_WAITING = 1000;

export interface ExporterOptions {
  readonly root: string;
  readonly snapshotter: Snapshotter;
  readonly onExported: (disks: number, bytes: number, durationMs: number) => void;
  readonly onProblem: (error: unknown) => void;
}

export class Exporter {
  readonly #policy: ExportPolicy;
  readonly #options: ExporterOptions;
  readonly #waiting: (readonly DiffId[])[] = [];
  /** Chains that were made since the last collection, or are about to be, so that a container costs no thread. */
  readonly #known = new Set<string>();
  #running: Promise<void> | undefined;
  #closed = false;

  constructor({ exports }: Config, options: ExporterOptions) {
    const verity = exports.verity === "none" ? undefined : exports.verity;
    this.#policy = { mode: exports.mode, verity, blockSize: exports.blockSize, when: exports.when };
    this.#options = options;
  }

  /** A layer was committed as `name`. */
  onCommit(name: string, labels: Labels): void {
    const { mode, when } = this.#policy;
    if (mode === "off" || when !== "pull") return;
    // An image is complete with its uppermost layer, which only labels tell; without them its first container does.
    if (mode === "image" && isUppermost(labels) !== true) return;
    this.#want(name);
  }

  /** A container's snapshot, or a view, stands on `parent`. */
  onUse(parent: string): void {
    if (this.#policy.mode !== "off" && parent !== "") this.#want(parent);
  }

  /** Garbage was collected, perhaps disks with it: what is used from now on is looked for again. */
  forget(): void {
    this.#known.clear();
  }

  /** Resolves when nothing is under way; nothing begins afterwards. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#waiting.length = 0;
    await this.#running;
  }

  #want(name: string): void {
    const diffIds = this.#options.snapshotter.layersOf(name);
    if (diffIds === undefined || diffIds.length === 0 || this.#closed) return; // a directory among them has no image
    // A layer's disk is the same whatever it stands on.
    for (const chain of this.#policy.mode === "layer" ? diffIds.map((diffId) => [diffId]) : [diffIds]) this.#add(chain);
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined;
    });
  }

  #add(diffIds: readonly DiffId[]): void {
    const key = diffIds.join();
    if (this.#known.has(key) || this.#waiting.length >= MAX_WAITING) return;
    this.#known.add(key);
    this.#waiting.push(diffIds);
  }

  async #run(): Promise<void> {
    const { root, onExported, onProblem } = this.#options;
    for (let diffIds = this.#waiting.shift(); diffIds !== undefined; diffIds = this.#waiting.shift()) {
      const started = performance.now();
      try {
        const { items, bytes } = await runInBackground({ kind: "export", root, diffIds, policy: this.#policy });
        onExported(items, bytes, performance.now() - started);
      } catch (error) {
        this.#known.delete(diffIds.join()); // removed meanwhile, or a full disk: the next use tries again
        onProblem(error);
      }
    }
  }
}
