import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { gunzipSync } from "node:zlib";
import { FormatError } from "../../errors/index.ts";
import { LayerIndexBuilder } from "../layer-index/builder.ts";
import { checksum, FIELDS } from "./header.ts";
import { TarDecoder } from "./index.ts";

/**
 * Mutated vectors. The invariant: a tar decodes into a layer or throws FormatError, nothing else; what went to the sink
 * before is a prefix of the input, whatever the cuts. SHALE_FUZZ_RUNS sets the number of tars.
 */
const RUNS = Number(process.env.SHALE_FUZZ_RUNS ?? 1500);
const FOLDER = new URL("testdata/", import.meta.url);

/** Small and fast, and the same everywhere: a failing run is found again by its number. */
function random(seed: number): (below: number) => number {
  let state = seed * 2654435761 + 1;
  return (below) => {
    state = (Math.imul(state ^ (state >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    return ((state ^ (state >>> 13)) >>> 0) % below;
  };
}

const INTERESTING = [
  "\0",
  "0",
  "7",
  "9",
  " ",
  "\x80",
  "\xff",
  "x",
  "g",
  "L",
  "K",
  "S",
  "D",
  "1",
  "5",
  "=",
  "\n",
  "/",
  ".",
  "-",
];

function mutate(tar: Buffer, next: (below: number) => number): Buffer {
  const bytes = Buffer.from(tar.subarray(0, Math.min(tar.length, 65536)));
  const blocks = Math.max(1, Math.floor(bytes.length / 512));
  for (let n = 1 + next(4); n > 0; n--) {
    const block = next(blocks) * 512;
    switch (next(4)) {
      case 0: // a byte of a header
        bytes.write(INTERESTING[next(INTERESTING.length)]!, block + next(512), "latin1");
        break;
      case 1: // its type
        bytes.write(INTERESTING[next(INTERESTING.length)]!, block + FIELDS.type.offset, "latin1");
        break;
      case 2: // its size
        bytes.write(next(5000).toString(8).padStart(11, "0"), block + FIELDS.size.offset, "latin1");
        break;
      default: // a block from elsewhere
        bytes.copy(bytes, block, next(blocks) * 512, next(blocks) * 512 + 512);
    }
    if (block + 512 <= bytes.length && next(10) > 0) {
      const view = bytes.subarray(block, block + 512);
      view.write(`${checksum(view, 0).toString(8).padStart(6, "0")}\0 `, FIELDS.checksum.offset, "latin1");
    }
  }
  return next(4) === 0 ? bytes.subarray(0, next(bytes.length)) : bytes;
}

function run(bytes: Buffer, chunkLength: number): string {
  const builder = new LayerIndexBuilder();
  let seen = 0;
  const check = (piece: Uint8Array) => {
    assert.ok(bytes.subarray(seen, seen + piece.length).equals(piece));
    seen += piece.length;
  };
  const summary: string[] = [];
  const decoder = new TarDecoder({
    raw: check,
    payload: check,
    entry(entry) {
      summary.push(JSON.stringify(entry));
      builder.add(entry);
    },
    endEntry() {},
  });
  try {
    for (let at = 0; at < bytes.length; at += chunkLength) decoder.write(bytes.subarray(at, at + chunkLength));
    decoder.end();
    builder.finish();
    assert.equal(seen, bytes.length);
    summary.push("complete");
  } catch (error) {
    if (!(error instanceof FormatError)) throw error;
    summary.push(error.message);
  }
  return summary.join("\n");
}

test(`TarDecoder and LayerIndexBuilder decode or throw FormatError for ${RUNS} mutated tars`, () => {
  const tars = readdirSync(FOLDER)
    .filter((name) => name.endsWith(".tar.gz"))
    .sort()
    .map((name) => gunzipSync(readFileSync(new URL(name, FOLDER))));
  let complete = 0;
  for (let seed = 0; seed < RUNS; seed++) {
    const next = random(seed);
    const bytes = mutate(tars[seed % tars.length]!, next);
    try {
      const whole = run(bytes, Math.max(1, bytes.length));
      if (whole.endsWith("complete")) complete++;
      else
        assert.equal(
          run(bytes, 1 + next(700))
            .split("\n")
            .at(-1),
          whole.split("\n").at(-1),
        );
    } catch (error) {
      throw new Error(`seed ${seed}`, { cause: error });
    }
  }
  assert.ok(
    complete > 0 && complete < RUNS,
    `${complete} of ${RUNS} decoded: the mutations are too weak or too strong`,
  );
});
