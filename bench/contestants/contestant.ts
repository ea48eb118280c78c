/**
 * What a contestant of the pull race is.
 *
 * `prepare` makes everything that an installation would have ready: an empty store and a running daemon. It is not timed.
 * `Attempt.pull` is timed: from the reference to a root file system in which a file can be read. Durability is the
 * scenario's: it runs syncfs(2) after every contestant's pull inside the timed part.
 */
import type { BenchImage, Environment } from "../environment.ts";

export interface Contestant {
  /** For `--contestants` and as a key; one word. */
  readonly id: string;
  readonly title: string;
  /** One line for the head of the report. */
  version(): Promise<string>;
  /** `directory` is empty and belongs to the attempt; the caller deletes it after disposal. */
  prepare(environment: Environment, directory: string): Promise<Attempt>;
}

export interface Attempt extends AsyncDisposable {
  /**
   * Pulls and mounts one more image. Resolves with a path, valid in this process until disposal, under which the root
   * file system is readable; undefined for the bare work, which makes none.
   */
  pull(image: BenchImage): Promise<string | undefined>;
}
