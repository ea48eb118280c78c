/**
 * The launcher `./shale`, with a made-up npm and Node on PATH: which Node it takes, when it installs, and that several
 * first runs install once.
 */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
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

/** Tells who it is and what it was given. */
const node = (name: string, version: string) =>
  `#!/bin/sh\nif [ "$1" = --version ]; then echo ${version}; else echo "${name} $*"; fi\n`;

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

  beforeEach(() => {
    base = mkdtempSync(join(tmpdir(), "shale-launcher-"));
    repository = join(base, "repository");
    bin = join(base, "bin");
    log = join(base, "npm.log");
    for (const directory of [repository, bin]) mkdirSync(directory);
    copyFileSync(LAUNCHER, join(repository, "shale"));
    for (const name of ["package.json", "package-lock.json"]) writeFileSync(join(repository, name), "{}\n");
    writeFileSync(log, "");
  });
  afterEach(() => rmSync(base, { recursive: true, force: true }));

  const program = (path: string, text: string) => {
    writeFileSync(path, text);
    chmodSync(path, 0o755);
  };
  const run = (command = join(repository, "shale"), ...args: string[]) =>
    // The tests' own directory first, so that no Node or npm of this machine is found before it.
    execute(command, args, { cwd: base, env: { PATH: `${bin}:/usr/bin:/bin`, HOME: "/nonexistent" } });
  const installs = () => readFileSync(log, "utf8").split("\n").filter(Boolean);
  const withNpm = () => program(join(bin, "npm"), npm(log, node("pinned", "v26.0.0")));

  test("installs once, says so on stderr, and runs the pinned Node with the arguments as they are", async () => {
    withNpm();
    const first = await run(join(repository, "shale"), "pull", "a b", "--json");
    const second = await run();
    assert.match(first.stdout, /^pinned .*\/repository\/src\/cli\/main\.ts pull a b --json\n$/);
    assert.match(first.stderr, /^shale: installing npm packages .*\n$/);
    assert.equal(second.stderr, "");
    assert.equal(installs().length, 1);
    assert.match(installs()[0]!, /^npm ci .*--include=dev/);
    assert.deepEqual(readdirSync(repository).sort(), ["node_modules", "package-lock.json", "package.json", "shale"]);
  });

  test("finds its repository through symbolic links, absolute and relative ones", async () => {
    withNpm();
    symlinkSync(join(repository, "shale"), join(bin, "shale-absolute"));
    symlinkSync("shale-absolute", join(bin, "shale"));
    const { stdout } = await run(join(bin, "shale"), "df");
    assert.match(stdout, /\/repository\/src\/cli\/main\.ts df\n$/);
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
      program(join(bin, "node"), node("path", version));
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
});
