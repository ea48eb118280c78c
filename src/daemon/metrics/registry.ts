/**
 * Counters, gauges and histograms, written in Prometheus's text format 0.0.4
 * (https://prometheus.io/docs/instrumenting/exposition_formats/). Pure: gauges are read when the text is asked for.
 *
 * Label values are given in the order of the names. They must be from small sets (methods, codes, kinds): every combination stays in
 * memory, so no key, image or digest is one.
 */

/** Seconds; rpcs take from half a millisecond to minutes. */
export const DURATION_BUCKETS = [
  0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300,
];

type LabelValues = readonly string[];
type Kind = "counter" | "gauge" | "histogram";

interface Family {
  readonly name: string;
  readonly help: string;
  readonly kind: Kind;
  samples(): Iterable<Sample>;
}

interface Sample {
  /** After the family's name: "_bucket", "_sum", "_count" or "". */
  readonly suffix: string;
  readonly labels: readonly (readonly [name: string, value: string])[];
  readonly value: number;
}

export interface Counter {
  /** Never less than 0. */
  add(value: number, ...labels: LabelValues): void;
}

export interface Histogram {
  observe(value: number, ...labels: LabelValues): void;
}

export class MetricRegistry {
  readonly #families = new Map<string, Family>();

  counter(name: string, help: string, labels: readonly string[] = []): Counter {
    const values = new Map<string, { readonly labels: LabelValues; value: number }>();
    if (labels.length === 0) values.set("", { labels: [], value: 0 }); // a rate needs the zero before the first event
    this.#register({
      ...{ name, help, kind: "counter" },
      *samples() {
        for (const { labels: given, value } of values.values()) yield sample("", labels, given, value);
      },
    });
    return {
      add(value, ...given) {
        seriesOf(values, labels, given, () => ({ labels: given, value: 0 })).value += value;
      },
    };
  }

  /** `read` answers the numbers of the moment. */
  gauge(
    name: string,
    help: string,
    labels: readonly string[],
    read: () => Iterable<readonly [number, ...string[]]>,
  ): void {
    this.#register({
      ...{ name, help, kind: "gauge" },
      *samples() {
        for (const [value, ...given] of read()) yield sample("", labels, given, value);
      },
    });
  }

  /** A counter that something else counts, the process's own CPU time for one. */
  counterOf(name: string, help: string, read: () => number): void {
    this.#register({ name, help, kind: "counter", samples: () => [sample("", [], [], read())] });
  }

  histogram(
    name: string,
    help: string,
    labels: readonly string[] = [],
    buckets: readonly number[] = DURATION_BUCKETS,
  ): Histogram {
    const series = new Map<string, Series>();
    const make = (given: LabelValues): Series => ({ labels: given, counts: buckets.map(() => 0), sum: 0, count: 0 });
    this.#register({
      ...{ name, help, kind: "histogram" },
      *samples() {
        for (const each of series.values()) yield* histogramSamples(each, labels, buckets);
      },
    });
    return {
      observe(value, ...given) {
        const one = seriesOf(series, labels, given, () => make(given));
        const bucket = buckets.findIndex((bound) => value <= bound);
        if (bucket >= 0) one.counts[bucket]!++;
        one.sum += value;
        one.count++;
      },
    };
  }

  /** All families, in the order in which they were made. */
  text(): string {
    const lines: string[] = [];
    for (const { name, help, kind, samples } of this.#families.values()) {
      lines.push(`# HELP ${name} ${help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")}`, `# TYPE ${name} ${kind}`);
      for (const { suffix, labels, value } of samples()) {
        const shown = labels.map(([label, text]) => `${label}="${escapeValue(text)}"`).join(",");
        lines.push(`${name}${suffix}${shown === "" ? "" : `{${shown}}`} ${formatNumber(value)}`);
      }
    }
    return `${lines.join("\n")}\n`;
  }

  #register(family: Family): void {
    if (this.#families.has(family.name)) throw new RangeError(`metric ${family.name} is there twice`);
    this.#families.set(family.name, family);
  }
}

interface Series {
  readonly labels: LabelValues;
  /** By bucket, not cumulated. */
  readonly counts: number[];
  sum: number;
  count: number;
}

function* histogramSamples(series: Series, names: readonly string[], buckets: readonly number[]): Generator<Sample> {
  let below = 0;
  for (const [at, bound] of buckets.entries()) {
    below += series.counts[at]!;
    yield sample("_bucket", [...names, "le"], [...series.labels, formatNumber(bound)], below);
  }
  yield sample("_bucket", [...names, "le"], [...series.labels, "+Inf"], series.count);
  yield sample("_sum", names, series.labels, series.sum);
  yield sample("_count", names, series.labels, series.count);
}

function sample(suffix: string, names: readonly string[], given: LabelValues, value: number): Sample {
  return { suffix, labels: names.map((name, at) => [name, given[at] ?? ""] as const), value };
}

function seriesOf<T>(all: Map<string, T>, names: readonly string[], given: LabelValues, make: () => T): T {
  if (given.length !== names.length) throw new RangeError(`${given.length} label values for ${names.length} names`);
  const key = given.join("\0");
  let one = all.get(key);
  if (one === undefined) {
    one = make();
    all.set(key, one);
  }
  return one;
}

function escapeValue(text: string): string {
  return text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}

function formatNumber(value: number): string {
  if (Number.isNaN(value)) return "NaN";
  if (!Number.isFinite(value)) return value > 0 ? "+Inf" : "-Inf";
  return String(value);
}
