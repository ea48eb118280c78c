/** What has to hold for every command: what its help promises, and what completion and docs make of it. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { GLOBAL_OPTIONS } from "./command.ts";
import { formatCompletion } from "./completion.ts";
import { formatDocs } from "./docs.ts";
import { formatCommandHelp } from "./help.ts";
import { checkPositionals, parseOptions, splitCommand } from "./parse.ts";
import { COMMANDS, FAMILIES, loadCommands, loadGroups } from "./table.ts";

const commands = await loadCommands();

describe("COMMANDS", () => {
  test("has every command of the product, under its own name", () => {
    const names = commands.map((command) => command.name);
    assert.deepEqual(
      names,
      COMMANDS.map((entry) => entry.name),
    );
    const product =
      "demo pull images layers inspect history mount umount ls cat stat diff df rm gc pin unpin check save load serve";
    for (const name of product.split(" ")) assert.ok(names.includes(name), name);
  });

  for (const command of commands) {
    const table = { ...command.options, ...GLOBAL_OPTIONS };

    test(`${command.name}: its options clash neither with each other nor with those of every command`, () => {
      const all = [...Object.entries(command.options), ...Object.entries(GLOBAL_OPTIONS)];
      const names = all.map(([name]) => name);
      const shorts = all.flatMap(([, spec]) => ("short" in spec && spec.short !== undefined ? [spec.short] : []));
      assert.deepEqual(names, [...new Set(names)]);
      assert.deepEqual(shorts, [...new Set(shorts)]);
      for (const short of shorts) assert.match(short, /^[A-Za-z]$/);
    });

    test(`${command.name}: its texts are sentences without their full stop, and its help fits 80 columns`, () => {
      const texts = [command.summary, ...command.arguments, ...Object.values(table), ...command.examples];
      for (const text of texts.map((each) => (typeof each === "string" ? each : each.help))) {
        assert.match(text, /^[A-Z"].*[^.\s]$/, text);
        assert.doesNotMatch(text, /[\\\n]/, text);
      }
      assert.ok(command.summary.length <= 64, command.summary);
      for (const line of formatCommandHelp(command, 80).split("\n")) {
        assert.ok(line.length <= 80 || line.startsWith("    "), line);
      }
    });

    test(`${command.name}: has examples, and its parser accepts them`, () => {
      assert.ok(command.examples.length > 0);
      for (const example of command.examples) {
        const line = /shale ([^|>)]*)/.exec(example.command)?.[1] ?? "";
        const { name, rest } = splitCommand(line.trim().split(/\s+/), GLOBAL_OPTIONS, Object.keys(FAMILIES));
        assert.equal(name, command.name, example.command);
        checkPositionals(parseOptions(rest, table, {}).positionals, command.arguments, command.name);
      }
    });

    test(`${command.name}: only its last argument repeats, and none is required after an optional one`, () => {
      command.arguments.forEach((argument, at) => {
        if (argument.repeated) assert.equal(at, command.arguments.length - 1);
        if (!argument.optional) assert.ok(command.arguments.slice(0, at).every((earlier) => !earlier.optional));
      });
    });
  }
});

describe("formatCompletion()", () => {
  const script = formatCompletion("bash", commands);

  /** What bash offers after these words. */
  const offers = (...words: string[]) => {
    const body = `${script}
      shale() { printf 'docker.io/library/app:1\\nother:2\\n'; }
      COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _shale; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const text = execFileSync("bash", ["--norc", "-c", body, "bash", ...words], {
      encoding: "utf8",
      cwd: import.meta.dirname,
    });
    return text.split("\n").filter(Boolean);
  };

  test("bash: commands, also after options with values", () => {
    assert.deepEqual(offers("shale", "p"), ["pull", "push", "pin"]);
    assert.deepEqual(offers("shale", "--root", "/x", "umo"), ["umount"]);
  });
  test("bash: options of the command and of every command", () => {
    assert.deepEqual(offers("shale", "pull", "--pl"), ["--platform"]);
    assert.deepEqual(offers("shale", "pull", "--js"), ["--json"]);
    assert.deepEqual(offers("shale", "--log"), ["--log-level"]);
  });
  test("bash: values of options", () => {
    assert.deepEqual(offers("shale", "inspect", "--raw", "m"), ["manifest"]);
    assert.deepEqual(offers("shale", "gc", "--log-level", "w"), ["warn"]);
    assert.deepEqual(offers("shale", "--root", "prog"), ["progress"]);
  });
  test("bash: images of the store, files, shells", () => {
    assert.deepEqual(offers("shale", "rm", "docker"), ["docker.io/library/app:1"]);
    assert.deepEqual(offers("shale", "load", "table.te"), ["table.test.ts"]);
    assert.deepEqual(offers("shale", "completion", "z"), ["zsh"]);
  });

  for (const shell of ["bash", "zsh", "fish"] as const) {
    test(`${shell}: names every command and every option`, () => {
      const text = formatCompletion(shell, commands);
      for (const command of commands) {
        for (const word of command.name.split(" ")) assert.ok(text.includes(word), command.name);
        for (const name of Object.keys(command.options)) {
          assert.ok(text.includes(shell === "fish" ? `-l ${name} ` : `--${name}`), `${command.name} --${name}`);
        }
      }
    });
  }
});

describe("docs/cli.md", () => {
  test("is what `node src/cli/docs.ts` prints", async () => {
    const path = join(import.meta.dirname, "../../docs/cli.md");
    assert.equal(
      readFileSync(path, "utf8"),
      formatDocs(await loadGroups()),
      "run: node_modules/.bin/node src/cli/docs.ts > docs/cli.md",
    );
  });
});
