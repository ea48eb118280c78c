/** Progress for files and pipes: a line at the start and the end of each piece of work, and one every few seconds. */
import { advance, formatMeter, newMeter } from "./meter.ts";
import type { ProgressConsole, ProgressStream } from "./index.ts";

const EVERY_MS = 5000;

/** With `silent`, only notes are written. */
export function createLines(
  stream: ProgressStream,
  options: { readonly silent: boolean; readonly now: () => number },
): ProgressConsole {
  const { now } = options;
  const say = (text: string) => {
    if (!options.silent) stream.write(`${text}\n`);
  };
  return {
    note: (line) => void stream.write(`${line}\n`),
    close: () => undefined,
    start(_id, { label, total }) {
      const meter = newMeter(label, total, now());
      let saidMs = meter.startedMs;
      // No timer: work that stands still says nothing, and a forgotten task keeps no process alive.
      const sayNow = () => {
        saidMs = now();
        say(`${meter.label}: ${formatMeter(meter, saidMs)}`);
      };
      const end = (failed: boolean, text: string) => {
        if (meter.end) return;
        meter.end = { atMs: now(), failed, text };
        sayNow();
      };
      say(`${meter.label}: started`);
      return {
        advance(bytes) {
          if (meter.end) return;
          advance(meter, bytes, now());
          if (now() - saidMs >= EVERY_MS) sayNow();
        },
        status(text) {
          if (meter.end || meter.status === text) return;
          meter.status = text;
          if (now() - saidMs >= EVERY_MS) sayNow();
        },
        done: (text = "done") => end(false, text),
        fail: (text = "failed") => end(true, text),
      };
    },
  };
}
