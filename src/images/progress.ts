/**
 * How long work tells its caller how far it is. `images/` reports through this interface and knows nothing of
 * terminals; `cli/progress/` draws it. Calls are cheap and never throw: they may be made for every chunk.
 */
export interface Progress {
  /**
   * Begins one line of work. `id` is unique among those under way (a digest, say); `label` is for people; `total` is in
   * bytes, and absent where it isn't known beforehand.
   */
  start(id: string, options: { readonly label: string; readonly total?: number }): ProgressTask;
}

/** One line of work. Ends with exactly one of `done` and `fail`; later calls do nothing. */
export interface ProgressTask {
  /** `bytes` more are through (not the sum so far). */
  advance(bytes: number): void;
  /** The step that it is at: "waiting", "verifying", "committing". */
  status(text: string): void;
  /** `text` replaces "done": "already here", "shared with another pull". */
  done(text?: string): void;
  fail(text?: string): void;
}

const ignore = (): void => undefined;
const silentTask: ProgressTask = { advance: ignore, status: ignore, done: ignore, fail: ignore };

/** Reports nothing. The default of every operation that takes a Progress. */
export const silentProgress: Progress = { start: () => silentTask };
