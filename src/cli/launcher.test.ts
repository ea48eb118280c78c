/**
 * The launcher `./shale`, with a made-up npm and Node on PATH: which Node it takes, when it installs and when it compiles, and
 * that several first runs do that once. What it does with the real ones is in tests/bundle/.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, test } from "node:test";
import { promisify } from "node:util";

const execute = promisify(execFile);
const LAUNCHER = join(import.meta.dirname, "../../shale");

/** Tells who it is and what it was given. Asked to compile, it runs the shell script BUNDLER with the repository as its argument. */
const node = (name: string, version: string, bundler: string) => `#!/bin/sh
case "$*" in
  --version) echo ${version} ;;
  *scripts/bundle.ts*) for root; do :; done; exec sh ${bundler} "$root" ;;
  *) echo "${name} $*" ;;
esac
`;

/** Makes a build as scripts/bundle.ts does, in a moment; edits from then on are newer than its stamp. */
const BUNDLER = `
cache=$1/node_modules/.cache/shale
mkdir -p "$cache/build-$$/src"
touch "$cache/build-$$/stamp" "$cache/build-$$/src/main.js"
echo "build-$$" >> "$1/../builds.log"
sleep 0.1
echo "build-$$" > "$cache/current.$$"
mv "$cache/current.$$" "$cache/current"
`;

/** Installs what npm would: its record, and the pinned Node. Counts its runs, and takes a moment over it. */
const npm = (log: string, pinned: string) => `#!/bin/sh
echo "npm $*" >> ${log}
mkdir -p node_modules/.bin
sleep 0.2
cat > node_modules/.bin/node <<'X'
${pinned}X
chmod +x node_modules/.bin/node
echo '{}' > node_modules/.package-lock.json
`;

describe("shale (launcher)", () => {
  let base: string;
  let repository: string;
  let bin: string;
  let log: string;
  let bundler: string;

  beforeEach(() => {
    base = mkdtempSync(join(tmpdir(), "shale-launcher-"));
    repository = join(base, "repository");
    bin = join(base, "bin");
    log = join(base, "npm.log");
    for (const directory of [repository, bin]) mkdirSync(directory);
    copyFileSync(LAUNCHER, join(repository, "shale"));
    bundler = join(base, "bundler");
    for (const directory of ["src/cli", "scripts"]) mkdirSync(join(repository, directory), { recursive: true });
    for (const name of ["package.json", "package-lock.json", "tsconfig.json", "src/cli/main.ts", "scripts/bundle.ts"]) {
      writeFileSync(join(repository, name), "{}\n");
    }
    writeFileSync(bundler, BUNDLER);
    for (const file of [log, join(base, "builds.log")]) writeFileSync(file, "");
  });
  afterEach(() => rmSync(base, { recursive: true, force: true }));

  const program = (path: string, text: string) => {
    writeFileSync(path, text);
    chmodSync(path, 0o755);
  };
  const run = (command = join(repository, "shale"), ...args: string[]) =>
    // The tests' own directory first, so that no Node or npm of this machine is found before it.
    execute(command, args, { cwd: base, env: { PATH: `${bin}:/usr/bin:/bin`, HOME: "/nonexistent" } });
  const lines = (file: string) => readFileSync(file, "utf8").split("\n").filter(Boolean);
  const installs = () => lines(log);
  const builds = () => lines(join(base, "builds.log"));
  const withNpm = () => program(join(bin, "npm"), npm(log, node("pinned", "v26.0.0", bundler)));

  test("installs once, says so on stderr, and runs the pinned Node with the arguments as they are", async () => {
    withNpm();
    const first = await run(join(repository, "shale"), "pull", "a b", "--json");
    const second = await run();
    assert.match(first.stdout, /^pinned .*\/repository\/.*\/main\.js pull a b --json\n$/);
    assert.match(first.stderr, /^shale: installing npm packages .*\n$/);
    assert.equal(second.stderr, "");
    assert.equal(installs().length, 1);
    assert.match(installs()[0]!, /^npm ci .*--include=dev/);
    assert.deepEqual(
      readdirSync(repository).filter((name) => name.startsWith(".")),
      [],
    );
  });

  test("finds its repository through symbolic links, absolute and relative ones", async () => {
    withNpm();
    symlinkSync(join(repository, "shale"), join(bin, "shale-absolute"));
    symlinkSync("shale-absolute", join(bin, "shale"));
    const { stdout } = await run(join(bin, "shale"), "df");
    assert.match(stdout, /\/repository\/.*\/main\.js df\n$/);
  });

  test("installs once when several first runs start together", async () => {
    withNpm();
    const runs = await Promise.all([run(), run(), run(), run()]);
    assert.equal(installs().length, 1);
    for (const { stdout } of runs) assert.match(stdout, /^pinned /);
  });

  test("installs again when package-lock.json is newer than the installation", async () => {
    withNpm();
    await run();
    const later = new Date(Date.now() + 60_000);
    utimesSync(join(repository, "package-lock.json"), later, later);
    await run();
    assert.equal(installs().length, 2);
  });

  for (const { version, taken } of [
    { version: "v24.11.9", taken: false },
    { version: "v24.12.0", taken: true },
    { version: "v25.0.0", taken: true },
    { version: "v20.20.2", taken: false },
    { version: "nonsense", taken: false },
  ]) {
    test(`${taken ? "takes" : "refuses"} Node ${version} of PATH where the pinned one is missing`, async () => {
      mkdirSync(join(repository, "node_modules"));
      writeFileSync(join(repository, "node_modules/.package-lock.json"), "{}");
      program(join(bin, "node"), node("path", version, bundler));
      if (taken) assert.match((await run()).stdout, /^path /);
      else await assert.rejects(run(), { code: 1, stderr: /Cannot find Node 24\.12 or newer/ });
    });
  }

  test("shows npm's output, keeps the old installation and leaves nothing behind when npm fails", async () => {
    withNpm();
    await run();
    program(join(bin, "npm"), "#!/bin/sh\nmkdir -p node_modules\necho 'E404 for everything'\nexit 1\n");
    const later = new Date(Date.now() + 60_000);
    utimesSync(join(repository, "package-lock.json"), later, later);
    await assert.rejects(run(), { code: 1, stderr: /E404 for everything[\s\S]*npm ci failed/ });
    assert.ok(existsSync(join(repository, "node_modules/.bin/node")));
    assert.deepEqual(
      readdirSync(repository).filter((name) => name.startsWith(".install")),
      [],
    );
  });

  test("keeps the builds when it installs again: programs that run from them load parts later", async () => {
    withNpm();
    const { stdout } = await run();
    const later = new Date(Date.now() + 60_000);
    utimesSync(join(repository, "package-lock.json"), later, later);
    await run();
    assert.equal(installs().length, 2);
    assert.ok(existsSync(/\S+main\.js/.exec(stdout)![0]));
  });

  describe("compiles", () => {
    /** What the next start runs: the name of a build, or "sources". */
    const runs = async (stderr = /^$/): Promise<string> => {
      const ended = await run();
      assert.match(ended.stderr, stderr);
      const [, build] =
        /^pinned .*\/repository\/(?:node_modules\/\.cache\/shale\/([\w-]+)\/src\/main\.js|src\/cli\/main\.ts)\n$/.exec(
          ended.stdout,
        )!;
      return build ?? "sources";
    };
    const at = (path: string) => join(repository, path);

    beforeEach(async () => {
      withNpm();
      for (const name of ["a.ts", "b.ts"]) writeFileSync(at(`src/cli/${name}`), "1\n");
      await run();
      assert.equal(builds().length, 1);
    });

    test("once, and runs that", async () => {
      assert.equal(await runs(), builds()[0]);
      assert.equal(await runs(), builds()[0]);
      assert.equal(builds().length, 1);
    });

    const CHANGES: readonly { readonly what: string; readonly change: () => void }[] = [
      { what: "an edited source", change: () => appendFileSync(at("src/cli/a.ts"), "2\n") },
      {
        what: "an edited source that kept its time",
        change: () => {
          writeFileSync(at("src/cli/a.ts"), "3\n");
          utimesSync(at("src/cli/a.ts"), 1_700_000_000, 1_700_000_000);
        },
      },
      { what: "a removed source", change: () => rmSync(at("src/cli/a.ts")) },
      { what: "a renamed source", change: () => renameSync(at("src/cli/a.ts"), at("src/cli/c.ts")) },
      { what: "an older source in place of another", change: () => renameSync(at("src/cli/a.ts"), at("src/cli/b.ts")) },
      {
        what: "another directory in place of the sources",
        change: () => {
          renameSync(at("src"), at("old"));
          mkdirSync(at("new/cli"), { recursive: true });
          renameSync(at("new"), at("src"));
        },
      },
      { what: "package.json", change: () => writeFileSync(at("package.json"), "{ }\n") },
      { what: "tsconfig.json", change: () => writeFileSync(at("tsconfig.json"), "{ }\n") },
      { what: "scripts/bundle.ts", change: () => writeFileSync(at("scripts/bundle.ts"), "4\n") },
      { what: "the launcher", change: () => appendFileSync(at("shale"), "\n") },
      {
        what: "package-lock.json",
        change: () => {
          const before = new Date(Date.now() - 60_000); // npm has nothing to do for that
          utimesSync(at("package-lock.json"), before, before);
        },
      },
      {
        what: "a build that is gone",
        change: () => rmSync(at(`node_modules/.cache/shale/${builds()[0]}/src/main.js`)),
      },
    ];
    for (const { what, change } of CHANGES) {
      test(`again after a change: ${what}`, async () => {
        change();
        assert.equal(await runs(), builds()[1]);
        assert.equal(await runs(), builds()[1]);
        assert.equal(builds().length, 2);
      });
    }

    test("with a map to the sources, read where stack traces are shown", async () => {
      for (const level of ["--log-level=debug", "debug"]) {
        assert.match((await run(at("shale"), "pull", level)).stdout, / --enable-source-maps .*\/src\/main\.js pull /);
      }
      assert.doesNotMatch((await run(at("shale"), "pull")).stdout, /maps/);
    });

    test("once when several start together", async () => {
      appendFileSync(at("src/cli/a.ts"), "2\n");
      const names = await Promise.all([runs(), runs(), runs(), runs()]);
      assert.deepEqual(new Set(names), new Set([builds()[1]]));
      assert.equal(builds().length, 2);
    });

    test("again at the next start when a source is edited meanwhile, and runs the sources until then", async () => {
      appendFileSync(at("src/cli/a.ts"), "2\n");
      writeFileSync(bundler, BUNDLER.replace("sleep 0.1", `sleep 0.1; echo 3 >> "$1/src/cli/b.ts"`));
      assert.equal(await runs(), "sources");
      writeFileSync(bundler, BUNDLER);
      assert.equal(await runs(), builds()[2]);
    });

    test("and runs the sources with one line on stderr where that fails", async () => {
      appendFileSync(at("src/cli/a.ts"), "2\n");
      writeFileSync(bundler, "echo 'Cannot find esbuild'; echo more >&2; exit 1\n");
      const line = /^shale: running the sources as they are, since compiling them failed: Cannot find esbuild\n$/;
      assert.equal(await runs(line), "sources");
      writeFileSync(bundler, BUNDLER);
      assert.equal(await runs(), builds()[1]);
    });

    test("nothing where the directory is not this user's to write: the build while it is fresh, then the sources", async () => {
      for (const directory of ["node_modules", "node_modules/.cache", "node_modules/.cache/shale"]) {
        if (process.geteuid?.() === 0) chownSync(at(directory), 65534, 65534);
        else chmodSync(at(directory), 0o555);
      }
      try {
        assert.equal(await runs(), builds()[0]);
        appendFileSync(at("src/cli/a.ts"), "2\n");
        assert.equal(await runs(), "sources");
        assert.equal(builds().length, 1);
      } finally {
        for (const directory of ["node_modules", "node_modules/.cache", "node_modules/.cache/shale"]) {
          chmodSync(at(directory), 0o755);
        }
      }
    });

    test("nothing where node_modules is a link: what is in it may be of another checkout", async () => {
      renameSync(at("node_modules"), join(base, "shared"));
      symlinkSync(join(base, "shared"), at("node_modules"));
      assert.equal(await runs(), "sources");
      appendFileSync(at("src/cli/a.ts"), "2\n");
      assert.equal(await runs(), "sources");
    });

    test("nothing where find can't tell what changed: the sources, always", async () => {
      program(join(bin, "find"), "#!/bin/sh\necho 'find: unrecognized: -cnewer' >&2\nexit 1\n");
      assert.equal(await runs(), "sources");
      rmSync(at("node_modules/.cache"), { recursive: true });
      assert.equal(await runs(), "sources");
      assert.equal(builds().length, 1);
    });
  });
});
