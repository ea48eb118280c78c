import assert from "node:assert/strict";
import { describe, test } from "node:test";
import fc from "fast-check";
import {
  countOf,
  fillBar,
  formatBytes,
  formatCount,
  formatDuration,
  formatRate,
  formatTable,
  GLYPHS,
  stackedBar,
  wrap,
} from "./format.ts";

describe("format", () => {
  for (const [size, text] of [
    [0, "0 B"],
    [999, "999 B"],
    [1000, "1.00 kB"],
    [1234, "1.23 kB"],
    [9994, "9.99 kB"],
    [9995, "10.0 kB"],
    [99_949, "99.9 kB"],
    [99_950, "100 kB"],
    [999_499, "999 kB"],
    [999_500, "1.00 MB"],
    [2 ** 31, "2.15 GB"],
    [2 ** 53, "9.01 PB"],
    [-1500, "-1.50 kB"],
  ] as const) {
    test(`formatBytes(${size}) is "${text}"`, () => assert.equal(formatBytes(size), text));
  }

  test("formatBytes() shows at most three digits and never rounds to 1000 of a unit", () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 9e17 }), (size) => {
        const shown = formatBytes(size);
        assert.match(shown, /^\d{1,3}(\.\d{1,2})? (B|kB|MB|GB|TB|PB)$/);
        assert.ok(shown.split(" ")[0]!.replace(".", "").length <= 3, shown);
      }),
    );
  });

  for (const [ms, text] of [
    [0, "0.0 ms"],
    [9.94, "9.9 ms"],
    [9.96, "10 ms"],
    [999.4, "999 ms"],
    [999.6, "1.0 s"],
    [59_940, "59.9 s"],
    [59_960, "1 min 00 s"],
    [125_400, "2 min 05 s"],
    [3_599_600, "1 h 00 min"],
    [11_220_000, "3 h 07 min"],
  ] as const) {
    test(`formatDuration(${ms}) is "${text}"`, () => assert.equal(formatDuration(ms), text));
  }

  test("formatCount() groups thousands", () => {
    assert.deepEqual([0, 999, 1000, 30_000, 1_234_567].map(formatCount), ["0", "999", "1,000", "30,000", "1,234,567"]);
  });

  test("countOf() agrees in number", () => {
    assert.equal(countOf(1, "file"), "1 file");
    assert.equal(countOf(2000, "file"), "2,000 files");
    assert.equal(countOf(0, "entry", "entries"), "0 entries");
  });

  test("formatRate() is bytes per second", () => assert.equal(formatRate(1_500_000.4), "1.50 MB/s"));

  test("formatTable() aligns numbers right, text left, and leaves no spaces at line ends", () => {
    const table = formatTable(
      [
        { header: "NAME", cell: (row: { name: string; size: number }) => row.name },
        { header: "SIZE", cell: (row) => formatBytes(row.size), align: "right" },
        { header: "NOTE", cell: () => "" },
      ],
      [
        { name: "a", size: 5 },
        { name: "long-é-name", size: 123_456 },
      ],
    );
    assert.equal(table, "NAME           SIZE  NOTE\na               5 B\nlong-é-name  123 kB\n");
  });

  test("formatTable() keeps the header over no rows", () => {
    assert.equal(formatTable([{ header: "NAME", cell: () => "" }], []), "NAME\n");
  });

  const sizes = fc.array(fc.integer({ min: 0, max: 1e12 }), { minLength: 1, maxLength: 3 });
  const glyphs = [GLYPHS.unique, GLYPHS.shared, GLYPHS.saved];

  test("stackedBar() is as long as its sum says, and shows every part that there is room for", () => {
    fc.assert(
      fc.property(sizes, fc.integer({ min: 1, max: 100 }), fc.boolean(), (parts, width, unicode) => {
        const sum = parts.reduce((all, part) => all + part, 0);
        const bar = stackedBar(
          parts.map((size, at) => ({ size, glyph: glyphs[at]! })),
          sum,
          width,
          unicode,
        );
        assert.equal([...bar].length, sum === 0 ? 0 : width);
        const present = parts.filter((size) => size > 0).length;
        const drawn = new Set(bar).size;
        assert.equal(drawn, sum === 0 ? 0 : Math.min(present, width), bar);
      }),
    );
  });

  test("stackedBar() shares cells by size, in order, with an ASCII form", () => {
    const parts = [50, 25, 25].map((size, at) => ({ size, glyph: glyphs[at]! }));
    assert.equal(stackedBar(parts, 100, 8, true), "████▓▓░░");
    assert.equal(stackedBar(parts, 200, 16, false), "####++..");
  });

  test("fillBar() is exactly as wide as asked, whatever the fraction", () => {
    fc.assert(
      fc.property(
        fc.double({ noNaN: true }),
        fc.integer({ min: 1, max: 80 }),
        fc.boolean(),
        (fraction, width, unicode) => {
          assert.equal([...fillBar(fraction, width, unicode)].length, width);
        },
      ),
    );
    assert.equal(fillBar(0.5, 4, true), "██  ");
    assert.equal(fillBar(0.3, 5, true), "█▌   ");
    assert.equal(fillBar(1, 3, false), "###");
  });

  test("wrap() breaks at spaces, within the width, and loses no word", () => {
    fc.assert(
      fc.property(fc.array(fc.stringMatching(/^[a-z]{1,12}$/)), fc.integer({ min: 14, max: 60 }), (words, width) => {
        const text = wrap(words.join(" "), width, "  ");
        for (const line of text.split("\n")) assert.ok(line.length <= width, line);
        assert.deepEqual(text.split(/\s+/).filter(Boolean), words);
      }),
    );
  });
});
