/** Steps of an export as lines of progress, one after another. */
import type { ExportProgress } from "../../export/index.ts";
import type { Progress, ProgressTask } from "../../images/progress.ts";

export interface ExportMeter extends ExportProgress {
  /** Ends the last step; `failed` where the export did not get through. */
  end(failed?: boolean): void;
}

export function exportMeter(progress: Progress): ExportMeter {
  let task: ProgressTask | undefined;
  let count = 0;
  return {
    step(name, total) {
      task?.done();
      task = total === 0 ? undefined : progress.start(`export-${count++}`, { label: name, total });
    },
    advance: (bytes) => task?.advance(bytes),
    end(failed = false) {
      if (failed) task?.fail();
      else task?.done();
      task = undefined;
    },
  };
}
