import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { atLeast, atMost, formatMarkdown, formatTerminal, type Report, seconds, times } from "./report.ts";

const report: Report = {
  facts: [["kernel", "Linux 6.18"]],
  goals: [atMost("memory", 5, 4, times), { name: "cold read", bar: "-", measured: "1.10 x", met: undefined }],
  tables: [
    {
      title: "Pull",
      columns: ["who", "python"],
      rows: [
        ["shale", "1.20 s"],
        ["a|b", "10.0 s"],
      ],
      notes: ["A note."],
    },
  ],
};

describe("report", () => {
  it("atMost() and atLeast() meet a bar exactly, and judge the value before it is rounded", () => {
    assert.equal(atMost("x", 1.3, 1.3, times).met, true);
    assert.deepEqual(atMost("x", 1.3001, 1.3, times), {
      name: "x",
      bar: "at most 1.30 x",
      measured: "1.30 x",
      met: false,
    });
    assert.equal(atLeast("x", 4, 4, times).met, true);
    assert.equal(atLeast("x", 3.9999, 4, times).met, false);
  });

  it("seconds() shows three digits", () => {
    assert.equal(seconds(1.234), "1.23 s");
    assert.equal(seconds(12.34), "12.3 s");
  });

  it("formatTerminal() aligns: the first column left, numbers right, goals last", () => {
    assert.equal(
      formatTerminal(report),
      `Pull
who    python
shale  1.20 s
a|b    10.0 s

goal       measured             bar  met
memory       5.00 x  at most 4.00 x   NO
cold read    1.10 x               -    -
`,
    );
  });

  it("formatMarkdown() writes facts, goals and tables, and escapes the column separator", () => {
    const text = formatMarkdown(report);
    assert.match(text, /^# Benchmark results\n/);
    assert.ok(text.includes("- kernel: Linux 6.18\n"));
    assert.ok(text.includes("| memory | 5.00 x | at most 4.00 x | NO |\n"));
    assert.ok(
      text.includes("## Pull\n\n| who | python |\n| --- | ---: |\n| shale | 1.20 s |\n| a\\|b | 10.0 s |\n\nA note.\n"),
    );
  });

  it("formatMarkdown() leaves out the goals when no scenario has one", () => {
    assert.ok(!formatMarkdown({ ...report, goals: [] }).includes("## Goals"));
  });
});
