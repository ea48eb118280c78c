import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import fc from "fast-check";
import { ShaleError } from "../../errors/index.ts";
import { formatConfigDocs } from "./format.ts";
import { type Config, defaultConfig, formatConfig, parseConfig } from "./index.ts";
import { OPTIONS } from "./options.ts";

const NAME = "/etc/shale/config.toml";

function refused(text: string): ShaleError {
  try {
    parseConfig(text, NAME);
  } catch (error) {
    assert.ok(ShaleError.is(error, "INVALID_ARGUMENT"), String(error));
    return error;
  }
  return assert.fail("it was accepted");
}

describe("parseConfig()", () => {
  test("gives the defaults for a file with a version only", () => {
    assert.deepEqual(parseConfig("version = 1\n", NAME), defaultConfig());
    assert.equal(defaultConfig().address, "/run/shale/shale.sock");
    assert.equal(defaultConfig().limits.bytesInFlight, 8 * 2 ** 30);
  });

  test("reads values of every kind", () => {
    const config = parseConfig(
      [
        ...["version = 1", 'root = "/data"', "[log]", 'format = "json"', "[mounts]", "volatile = true"],
        ...["[limits]", "layers = 3", 'bytes_in_flight = "1.5 GiB"', "[disk]", 'gc_interval = "2h"'],
        ...["[exports]", "block_size = 512"],
      ].join("\n"),
      NAME,
    );
    assert.equal(config.root, "/data");
    assert.equal(config.log.format, "json");
    assert.equal(config.mounts.volatile, true);
    assert.equal(config.limits.layers, 3);
    assert.equal(config.limits.bytesInFlight, 1.5 * 2 ** 30);
    assert.equal(config.disk.gcInterval, 7_200_000);
    assert.equal(config.exports.blockSize, 512);
  });

  const CASES: readonly { readonly name: string; readonly text: string; readonly says: RegExp }[] = [
    { name: "no version", text: 'root = "/x"', says: /config\.toml: it says no version/ },
    { name: "a later version", text: "version = 2", says: /its version is 2/ },
    {
      name: "what is not TOML",
      text: "version = 1\nroot = /x\n",
      says: /config\.toml: line 2: it is not TOML/,
    },
    {
      name: "an unknown key, with its line and what is allowed",
      text: "version = 1\n\n[log]\nlevel = 'info'\nlevl = 'debug'\n",
      says: /line 5: \[log\] levl: there is no such key; allowed are level, format$/,
    },
    {
      name: "an unknown section",
      text: "version = 1\n[metric]\naddress = ''\n",
      says: /line 2: metric: there is no such key; allowed are version, root, address, log, metrics,/,
    },
    {
      name: "an unknown key above the first section",
      text: "version = 1\nsocket = '/x'\n",
      says: /line 2: socket: there is no such key/,
    },
    {
      name: "a value that is no choice",
      text: "version = 1\n[log]\nlevel = 'trace'\n",
      says: /line 3: \[log\] level: "trace" is not allowed; give "error", "warn", "info", "debug"$/,
    },
    {
      name: "a wrong type",
      text: "version = 1\n[mounts]\nvolatile = 'yes'\n",
      says: /\[mounts\] volatile: "yes" is not allowed; give true or false$/,
    },
    {
      name: "a number out of range, with the unit",
      text: "version = 1\n[limits]\nlayers = 0\n",
      says: /line 3: \[limits\] layers: 0 is not allowed; give a whole number of layers from 1 to 1024$/,
    },
    {
      name: "a size without a unit",
      text: "version = 1\n[limits]\nbytes_in_flight = 100\n",
      says: /100 is not allowed; give a size from "16 MiB" to "1 TiB", with a unit/,
    },
    {
      name: "a time out of range",
      text: "version = 1\n[disk]\ngc_interval = '1ms'\n",
      says: /"1ms" is not allowed; give a time from "10s" to "7d"/,
    },
    {
      name: "a relative path",
      text: "version = 1\nroot = 'x'\n",
      says: /line 2: root: "x" is not allowed; give an abs/,
    },
    { name: "an empty path", text: "version = 1\nroot = ''\n", says: /line 2: root: "" is not allowed/ },
    { name: "a section that is a value", text: "version = 1\nlog = 3\n", says: /log: it is a section/ },
    {
      name: "an address without a port",
      text: "version = 1\n[metrics]\naddress = 'localhost'\n",
      says: /"localhost" is not allowed; give "HOST:PORT"/,
    },
    {
      name: "watermarks that are the wrong way round",
      text: "version = 1\n[disk]\nhigh_watermark = 50\nlow_watermark = 60\n",
      says: /line 4: \[disk\] low_watermark: it is above high_watermark, which is 50$/,
    },
    { name: "a table for a value", text: "version = 1\n[log.level]\nx = 1\n", says: /line 2: \[log\] level: a table/ },
  ];
  for (const { name, text, says } of CASES) {
    test(`refuses ${name}`, () => assert.match(refused(text).message, says));
  }

  test("returns or throws INVALID_ARGUMENT, whatever the file", () => {
    const word = fc.constantFrom(
      "version",
      "log",
      "level",
      "limits",
      "=",
      "[",
      "]",
      "1",
      "'x'",
      "__proto__",
      ".",
      "{}",
    );
    const soup = fc.array(fc.oneof(word, fc.constant("\n"), fc.string()), { maxLength: 30 });
    fc.assert(
      fc.property(soup, (words) => {
        try {
          parseConfig(`version = 1\n${words.join(" ")}`, NAME);
        } catch (error) {
          assert.ok(ShaleError.is(error, "INVALID_ARGUMENT"), String(error));
        }
      }),
    );
  });
});

describe("formatConfig()", () => {
  const roundTrip = (config: Config) => assert.deepEqual(parseConfig(formatConfig(config), NAME), config);

  test("gives a file that reads as the same configuration", () => {
    roundTrip(defaultConfig());
    const { limits, disk } = defaultConfig();
    fc.assert(
      fc.property(
        fc.integer({ min: 2 ** 24, max: 2 ** 40 }),
        fc.integer({ min: 10_000, max: 600_000_000 }),
        (bytes, ms) =>
          roundTrip({
            ...defaultConfig(),
            limits: { ...limits, bytesInFlight: bytes },
            disk: { ...disk, gcInterval: ms },
          }),
      ),
    );
  });

  test("has every option", () => {
    const text = formatConfig(defaultConfig());
    for (const [section, specs] of Object.entries(OPTIONS)) {
      assert.match(text, new RegExp(`^\\[${section}\\]$`, "m"));
      for (const key of Object.keys(specs)) assert.match(text, new RegExp(`^${key} = `, "m"));
    }
  });
});

test("docs/daemon-config.md is what `npm run docs` writes", () => {
  const docs = readFileSync(new URL("../../../docs/daemon-config.md", import.meta.url), "utf8");
  assert.equal(docs, formatConfigDocs());
});
