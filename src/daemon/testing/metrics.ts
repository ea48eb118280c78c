/** A strict reader of Prometheus's text format 0.0.4, written from its description: what a scraper would refuse, it refuses. */
import assert from "node:assert/strict";

export interface ParsedMetrics {
  /** The value of the one sample with this name and exactly these labels. */
  find(name: string, labels?: Readonly<Record<string, string>>): number | undefined;
  readonly families: ReadonlyMap<string, string>;
}

const NAME = /^[a-zA-Z_:][a-zA-Z0-9_:]*$/;

export function parseMetrics(text: string): ParsedMetrics {
  assert.ok(text.endsWith("\n"), "the last line has an end");
  const families = new Map<string, string>();
  const helps = new Set<string>();
  const samples = new Map<string, number>();
  let family = "";
  for (const line of text.slice(0, -1).split("\n")) {
    const comment = /^# (HELP|TYPE) (\S+) (.+)$/.exec(line);
    if (comment !== null) {
      const [, kind, name, rest] = comment;
      assert.match(name!, NAME);
      if (kind === "HELP") {
        assert.ok(!helps.has(name!), `${name} has one HELP`);
        helps.add(name!);
      } else {
        assert.ok(!families.has(name!), `${name} has one TYPE, and its samples are together`);
        assert.match(rest!, /^(counter|gauge|histogram)$/);
        families.set(name!, rest!);
        family = name!;
      }
      continue;
    }
    const sample = /^([^\s{]+)(?:\{(.*)\})? (\S+)$/.exec(line);
    assert.ok(sample, `a sample: ${line}`);
    const [, name, labelText = "", valueText] = sample;
    const base = families.get(family) === "histogram" ? name!.replace(/_(bucket|sum|count)$/, "") : name;
    assert.equal(base, family, "samples stand below their TYPE");
    const labels = parseLabels(labelText);
    const value = valueText === "+Inf" ? Number.POSITIVE_INFINITY : Number(valueText);
    assert.ok(!Number.isNaN(value), `a number: ${line}`);
    const key = keyOf(name!, labels);
    assert.ok(!samples.has(key), `${line} is there once`);
    samples.set(key, value);
  }
  return { families, find: (name, labels = {}) => samples.get(keyOf(name, labels)) };
}

function parseLabels(text: string): Record<string, string> {
  const labels: Record<string, string> = {};
  let rest = text;
  while (rest !== "") {
    const match = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)/.exec(rest);
    assert.ok(match, `labels: ${rest}`);
    labels[match[1]!] = match[2]!.replaceAll("\\n", "\n").replaceAll('\\"', '"').replaceAll("\\\\", "\\");
    rest = rest.slice(match[0].length);
  }
  return labels;
}

function keyOf(name: string, labels: Readonly<Record<string, string>>): string {
  return JSON.stringify([name, Object.entries(labels).sort(([a], [b]) => (a < b ? -1 : 1))]);
}
