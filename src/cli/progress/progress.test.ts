import assert from "node:assert/strict";
import { Writable } from "node:stream";
import { describe, test } from "node:test";
import fc from "fast-check";
import { createProgress } from "./index.ts";
import { advance, formatBarLine, formatMeter, newMeter, rateOf } from "./meter.ts";

/** A stream that keeps what is written to it. */
class Screen extends Writable {
  text = "";
  readonly columns = 100;
  readonly isTTY: boolean;
  constructor(isTTY: boolean) {
    super({ decodeStrings: false });
    this.isTTY = isTTY;
  }
  override _write(chunk: unknown, _encoding: string, done: () => void): void {
    this.text += String(chunk);
    done();
  }
}

/** A clock that a test turns. */
function clock() {
  const time = { ms: 0 };
  return { time, now: () => time.ms };
}

describe("meter", () => {
  test("formatMeter() shows size, total, rate and the time left, as far as they are known", () => {
    const meter = newMeter("layer", 10_000_000, 0);
    assert.equal(formatMeter(meter, 0), "0 B / 10.0 MB");
    for (let second = 1; second <= 4; second++) advance(meter, 1_000_000, second * 1000);
    assert.equal(formatMeter(meter, 4000), "4.00 MB / 10.0 MB  1.00 MB/s  6.0 s left");
    meter.status = "verifying";
    assert.equal(formatMeter(meter, 4000), "4.00 MB / 10.0 MB  verifying");
    meter.end = { atMs: 5000, failed: false, text: "done" };
    assert.equal(formatMeter(meter, 9000), "done  4.00 MB in 5.0 s");
  });
  test("formatMeter() without a total shows no time left", () => {
    const meter = newMeter("layer", undefined, 0);
    advance(meter, 500_000, 1000);
    assert.equal(formatMeter(meter, 1000), "500 kB  500 kB/s");
  });
  test("rateOf() follows the last seconds, not the whole time", () => {
    const meter = newMeter("layer", undefined, 0);
    for (let second = 1; second <= 60; second++) advance(meter, second <= 50 ? 1000 : 9000, second * 1000);
    assert.equal(rateOf(meter, 60_000), 9000);
  });
  test("formatBarLine() fits its columns, whatever the label, the numbers and the width", () => {
    fc.assert(
      fc.property(
        fc.string(),
        fc.option(fc.nat(2 ** 40), { nil: undefined }),
        fc.nat(2 ** 40),
        fc.integer({ min: 1, max: 200 }),
        (label, total, bytes, columns) => {
          const meter = newMeter(label, total, 0);
          advance(meter, bytes, 1000);
          assert.ok(formatBarLine(meter, 1000, columns, true).length < Math.max(columns, 1));
        },
      ),
    );
  });
  test("formatBarLine() draws half a bar at half the bytes, and none on a narrow terminal", () => {
    const meter = newMeter("layer", 100, 0);
    meter.bytes = 50;
    assert.match(formatBarLine(meter, 0, 100, false), /^layer {22}#{11}-{12} {2}50 B \/ 100 B$/);
    assert.equal(formatBarLine(meter, 0, 60, false), "layer            50 B / 100 B");
  });
});

describe("createProgress()", () => {
  test("lines: one at the start, one each five seconds, one at the end, none after it", () => {
    const { time, now } = clock();
    const screen = new Screen(false);
    const progress = createProgress("lines", screen, { unicode: true, now });
    const task = progress.start("sha256:a", { label: "layer 1/2", total: 10_000_000 });
    for (let second = 1; second <= 6; second++) {
      time.ms = second * 1000;
      task.advance(1_000_000);
    }
    progress.note("shale: a message");
    task.done();
    task.done("again");
    task.fail();
    task.advance(1);
    assert.deepEqual(screen.text.split("\n"), [
      "layer 1/2: started",
      "layer 1/2: 5.00 MB / 10.0 MB  1.00 MB/s  5.0 s left",
      "shale: a message",
      "layer 1/2: done  6.00 MB in 6.0 s",
      "",
    ]);
  });
  test("lines: control characters of a label don't reach the output", () => {
    const screen = new Screen(false);
    createProgress("lines", screen, { unicode: true, now: () => 0 })
      .start("a", { label: "a\u001b[2J\n" })
      .fail("gone");
    assert.equal(screen.text, "a\\x1b[2J\\x0a: started\na\\x1b[2J\\x0a: gone\n");
  });
  test("silent: notes only", () => {
    const screen = new Screen(false);
    const progress = createProgress("silent", screen, { unicode: true });
    progress.start("a", { label: "a" }).done();
    progress.note("shale: error: e");
    progress.close();
    assert.equal(screen.text, "shale: error: e\n");
  });
  test("bars: draws each task, keeps notes, shows the last state, and gives the cursor back on close()", () => {
    const { time, now } = clock();
    const screen = new Screen(true);
    const progress = createProgress("bars", screen, { unicode: true, now });
    const first = progress.start("a", { label: "layer a", total: 2000 });
    const second = progress.start("b", { label: "layer b" });
    first.advance(2000);
    second.advance(500);
    time.ms = 1000;
    progress.note("shale: a message");
    first.done("already here");
    second.fail("no answer");
    progress.close();
    progress.close();
    assert.ok(screen.text.includes("\x1b[?25l"), "the cursor is hidden while bars are drawn");
    const last = screen.text.slice(screen.text.lastIndexOf("\x1b[?25h"));
    assert.match(last, /layer a +already here {2}2\.00 kB in 1\.0 s/);
    assert.match(last, /layer b +no answer {2}500 B in 1\.0 s\S*\n$/);
    assert.equal(screen.text.split("shale: a message\n").length, 2);
  });
  test("bars: finished ones make room for new ones and stay on screen as lines", () => {
    const screen = new Screen(true);
    const progress = createProgress("bars", screen, { unicode: true, now: () => 0 });
    for (let layer = 0; layer < 40; layer++) progress.start(`${layer}`, { label: `layer ${layer}.` }).done();
    progress.close();
    for (let layer = 0; layer < 40; layer++) assert.ok(screen.text.includes(`layer ${layer}. `), `layer ${layer}`);
  });
  test("bars: draws nothing until there is work", () => {
    const screen = new Screen(true);
    const progress = createProgress("bars", screen, { unicode: true });
    progress.note("line");
    progress.close();
    assert.equal(screen.text, "line\n");
  });
});
