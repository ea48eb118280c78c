/** Progress on a terminal: one bar per piece of work, redrawn ten times a second by cli-progress. */
import { createRequire } from "node:module";
import type { MultiBar } from "cli-progress";
import type { ProgressTask } from "../../images/progress.ts";
import { advance, formatBarLine, type Meter, newMeter } from "./meter.ts";
import type { ProgressConsole, ProgressStream } from "./index.ts";

/** cli-progress redraws every bar each time; beyond this many the oldest finished ones become lines above. */
const MAX_BARS = 16;

export function createBars(
  stream: ProgressStream & NodeJS.WritableStream,
  options: { readonly unicode: boolean; readonly now: () => number },
): ProgressConsole {
  const { now, unicode } = options;
  const columns = () => stream.columns ?? 80;
  let bars: MultiBar | undefined;
  const shown: { readonly meter: Meter; readonly bar: ReturnType<MultiBar["create"]> }[] = [];

  /** Loaded at the first bar: most commands draw none, and start sooner without it. */
  const multiBar = () => {
    const { MultiBar } = createRequire(import.meta.url)("cli-progress") as typeof import("cli-progress");
    return new MultiBar({
      stream,
      fps: 10,
      hideCursor: true,
      linewrap: false,
      forceRedraw: true,
      emptyOnZero: true,
      // main.ts owns the signals; it calls close().
      gracefulExit: false,
      format: (_options, _params, payload: { readonly meter: Meter }) =>
        formatBarLine(payload.meter, now(), columns(), unicode),
    });
  };

  const retireFinished = () => {
    while (bars && shown.length >= MAX_BARS) {
      const at = shown.findIndex(({ meter }) => meter.end !== undefined);
      if (at < 0) return;
      const [old] = shown.splice(at, 1);
      bars.log(`${formatBarLine(old!.meter, now(), columns(), unicode)}\n`);
      bars.remove(old!.bar);
    }
  };

  return {
    start(_id, { label, total }): ProgressTask {
      bars ??= multiBar();
      retireFinished();
      const meter = newMeter(label, total, now());
      const bar = bars.create(total ?? 0, 0, { meter });
      shown.push({ meter, bar });
      const end = (failed: boolean, text: string) => {
        meter.end ??= { atMs: now(), failed, text };
      };
      return {
        advance(bytes) {
          if (!meter.end) advance(meter, bytes, now());
        },
        status(text) {
          if (!meter.end) meter.status = text;
        },
        done: (text = "done") => end(false, text),
        fail: (text = "failed") => end(true, text),
      };
    },
    note(line) {
      if (bars) bars.log(`${line}\n`);
      else stream.write(`${line}\n`);
    },
    close() {
      if (!bars) return;
      // update() writes the notes that are still waiting; stop() alone would drop them.
      bars.update();
      bars.stop();
      bars = undefined;
      shown.length = 0;
    },
  };
}
