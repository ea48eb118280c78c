/** The state of one line of work, and how it reads. Pure: time is a parameter, in milliseconds. */
import { fillBar, formatBytes, formatDuration, formatRate } from "../format.ts";
import { singleLine } from "../../log/index.ts";

export interface Meter {
  readonly label: string;
  readonly total: number | undefined;
  readonly startedMs: number;
  bytes: number;
  status: string | undefined;
  /** Set once, by `done` or `fail`. */
  end: { readonly atMs: number; readonly failed: boolean; readonly text: string } | undefined;
  /** Recent (time, bytes) pairs, oldest first, for a rate that follows the network. */
  readonly samples: { readonly atMs: number; readonly bytes: number }[];
}

/** The rate is taken over this long, and sampled this often. */
const RATE_WINDOW_MS = 5000;
const SAMPLE_MS = 250;

export function newMeter(label: string, total: number | undefined, nowMs: number): Meter {
  return {
    label: singleLine(label),
    total,
    startedMs: nowMs,
    bytes: 0,
    status: undefined,
    end: undefined,
    samples: [{ atMs: nowMs, bytes: 0 }],
  };
}

export function advance(meter: Meter, bytes: number, nowMs: number): void {
  meter.bytes += bytes;
  if (nowMs - meter.samples.at(-1)!.atMs < SAMPLE_MS) return;
  meter.samples.push({ atMs: nowMs, bytes: meter.bytes });
  while (meter.samples.length > 2 && nowMs - meter.samples[1]!.atMs > RATE_WINDOW_MS) meter.samples.shift();
}

/** Bytes per second over the last seconds, or undefined before there is enough to say. */
export function rateOf(meter: Meter, nowMs: number): number | undefined {
  const oldest = meter.samples[0]!;
  const elapsedMs = nowMs - oldest.atMs;
  return elapsedMs < SAMPLE_MS ? undefined : ((meter.bytes - oldest.bytes) / elapsedMs) * 1000;
}

/** "12.3 MB / 45.6 MB  78.9 MB/s  0.4 s left", as far as it is known. */
export function formatMeter(meter: Meter, nowMs: number): string {
  if (meter.end) return formatEnd(meter, meter.end);
  const size =
    meter.total === undefined ? formatBytes(meter.bytes) : `${formatBytes(meter.bytes)} / ${formatBytes(meter.total)}`;
  const rate = rateOf(meter, nowMs);
  const parts = [size];
  if (meter.status !== undefined) parts.push(meter.status);
  else if (rate !== undefined && rate > 0) {
    parts.push(formatRate(rate));
    const left = meter.total === undefined ? 0 : meter.total - meter.bytes;
    if (left > 0) parts.push(`${formatDuration((left / rate) * 1000)} left`);
  }
  return parts.join("  ");
}

function formatEnd(meter: Meter, end: NonNullable<Meter["end"]>): string {
  if (meter.bytes === 0) return end.text;
  return `${end.text}  ${formatBytes(meter.bytes)} in ${formatDuration(end.atMs - meter.startedMs)}`;
}

/** One line of at most `columns` cells: label, bar where a total is known, numbers. */
export function formatBarLine(meter: Meter, nowMs: number, columns: number, unicode: boolean): string {
  const labelWidth = Math.min(32, Math.max(12, Math.floor(columns / 4)));
  const label = meter.label.length > labelWidth ? `${meter.label.slice(0, labelWidth - 3)}...` : meter.label;
  const numbers = formatMeter(meter, nowMs);
  // What is left after the label and the longest usual numbers; a narrow terminal goes without a bar.
  const barWidth = Math.min(30, columns - labelWidth - 52);
  const fraction = barFraction(meter);
  const bar = barWidth >= 8 && fraction !== undefined ? `${fillBar(fraction, barWidth, unicode)}  ` : "";
  // The last column stays free: writing there makes some terminals wrap.
  return `${label.padEnd(labelWidth)}  ${bar}${numbers}`.slice(0, columns - 1).trimEnd();
}

function barFraction(meter: Meter): number | undefined {
  if (meter.end) return undefined;
  return meter.total === undefined || meter.total === 0 ? undefined : meter.bytes / meter.total;
}
