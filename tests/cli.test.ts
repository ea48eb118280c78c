/** The command as users run it: real processes on a real store, with an OCI layout as the origin. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { LARGE, writeLayout } from "../src/cli/testing/layout.ts";

const SHALE = join(import.meta.dirname, "../shale");
/** Whoever runs the tests, the commands run without root, apart from those that mount. */
const NOBODY = process.geteuid?.() === 0 ? { uid: 65534, gid: 65534 } : {};

const work = mkdtempSync(join(tmpdir(), "shale-cli-"));
const layout = join(work, "layout");
const root = join(work, "store");
const v1 = `oci:${layout}:v1`;
const v2 = `oci:${layout}:v2`;

/** The code cache of the launcher is the user's own; these users have one here, which makes each command twice as fast. */
const environment = {
  PATH: process.env.PATH,
  HOME: work,
  LANG: "C.UTF-8",
  NODE_COMPILE_CACHE: join(work, "compiled"),
};

interface RunOptions {
  readonly root?: string;
  readonly privileged?: boolean;
}

interface Ended {
  readonly status: number | null;
  readonly stdout: Buffer;
  readonly stderr: Buffer;
}

function run(args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const child = spawn(SHALE, ["--root", options.root ?? root, ...args], {
    env: environment,
    stdio: ["ignore", "pipe", "pipe"],
    ...(options.privileged ? {} : NOBODY),
  });
  const output: { readonly stdout: Buffer[]; readonly stderr: Buffer[] } = { stdout: [], stderr: [] };
  child.stdout.on("data", (bytes: Buffer) => output.stdout.push(bytes));
  child.stderr.on("data", (bytes: Buffer) => output.stderr.push(bytes));
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status) =>
      resolve({ status, stdout: Buffer.concat(output.stdout), stderr: Buffer.concat(output.stderr) }),
    );
  });
}

/** Runs a command that must succeed, and gives what it prints. */
async function shale(...args: readonly string[]): Promise<string> {
  const { status, stdout, stderr } = await run(args);
  assert.equal(status, 0, `shale ${args.join(" ")}: ${stderr}`);
  return stdout.toString();
}

// biome-ignore lint/suspicious/noExplicitAny: tests look into what a program prints
async function json(...args: readonly string[]): Promise<any> {
  return JSON.parse(await shale("--json", ...args));
}

/** Runs a command that must fail with `status`, and gives its stderr. */
async function fails(status: number, args: readonly string[], options?: RunOptions): Promise<string> {
  const result = await run(args, options);
  assert.equal(result.status, status, `shale ${args.join(" ")}: ${result.stdout}${result.stderr}`);
  return result.stderr.toString();
}

before(async () => {
  await writeLayout(layout);
  if (NOBODY.uid !== undefined) {
    chownSync(work, NOBODY.uid, NOBODY.gid);
    for (const path of readdirSync(work, { recursive: true, encoding: "utf8" })) {
      chownSync(join(work, path), NOBODY.uid, NOBODY.gid);
    }
  }
  chmodSync(work, 0o755);
});
after(() => rmSync(work, { recursive: true, force: true }));

describe("without a store", () => {
  test("commands that look say so, make nothing and hint at pull", async () => {
    const nowhere = join(work, "nowhere");
    for (const args of [["images"], ["ls", "app"], ["mount"], ["gc"]]) {
      assert.match(
        await fails(1, args, { root: nowhere }),
        /Cannot open the store: .*nowhere has none\nhint: Pull an image first/,
      );
    }
    assert.equal(existsSync(nowhere), false);
  });

  test("a directory of somebody else is refused with a hint, not a stack", {
    skip: NOBODY.uid === undefined && "needs root",
  }, async () => {
    const foreign = join(work, "foreign");
    mkdirSync(foreign, { mode: 0o700 });
    assert.match(
      await fails(1, ["images"], { root: foreign }),
      /^shale: Cannot open the store at .*: this user may not\n/,
    );
  });
});

describe("with two images", () => {
  before(async () => {
    const text = await shale("pull", v1);
    assert.match(text, /^oci:.*:v1 \([0-9a-f]{12}\): 2 layers fetched; .*B received, .* new in the store; .*s\n$/);
    const { images } = await json("pull", v2);
    assert.deepEqual(
      images[0].layers.map((layer: { state: string }) => layer.state),
      ["present", "fetched"],
    );
    assert.equal(images[0].layers[0].stored, 0);
    assert.ok(images[0].layers[1].stored > LARGE.length);
    assert.match(images[0].digest, /^sha256:[0-9a-f]{64}$/);
  });

  // Nothing of these changes the store.
  describe("reading", { concurrency: 4 }, () => {
    test("images: sizes, and unique bytes without the shared layer", async () => {
      const [one, two] = (await json("images")).images;
      assert.equal(one.name, v1);
      assert.equal(one.layers, 2);
      assert.equal(two.uniqueBytes < two.storedBytes, true);
      assert.equal(one.storedBytes - one.uniqueBytes, two.storedBytes - two.uniqueBytes);
      assert.deepEqual((await shale("images", "--names")).trimEnd().split("\n"), [v1, v2]);
      assert.match(await shale("images"), /^NAME +DIGEST +PLATFORM +LAYERS +SIZE +STORED +UNIQUE\n/);
    });

    test("layers: of the store and of one image, with the images that have them", async () => {
      const all = (await json("layers")).layers;
      assert.equal(all.length, 3);
      for (const layer of all) {
        assert.equal(layer.contentBytes, layer.ownBytes + layer.sharedBytes + layer.inlineBytes);
      }
      // Layers of one pull are committed in any order; those of one image are listed lowest first.
      const [base, top] = (await json("layers", v2)).layers;
      assert.deepEqual(base.images, [v1, v2]);
      assert.deepEqual(top.images, [v2]);
      assert.equal((await shale("layers", v2)).trimEnd().split("\n").length, 3);
    });

    test("inspect: configuration, layers, what was ignored; --raw as it was received", async () => {
      const image = await json("inspect", v1);
      assert.deepEqual(image.run.entrypoint, ["/bin/tool", "two words"]);
      assert.equal(image.layers[1].stored.notices[0].kind, "aufs-metadata");
      assert.equal(image.layers[1].stored.sharedBytes, 0);
      assert.equal((await json("inspect", v2)).layers[1].stored.sharedBytes, LARGE.length);
      const text = await shale("inspect", v1);
      assert.match(text, /Entrypoint: +\/bin\/tool 'two words'\n/);
      assert.match(text, /A=\\x1b\[31mred\n/);
      assert.match(text, /Ignored in layer 1:\n {2}\.wh\.\.wh\.plnk: /);
      const raw = await shale("inspect", "--raw", "config", v1);
      assert.equal(JSON.parse(raw).config.User, "1000");
      assert.equal(raw, readFileSync(join(layout, "blobs/sha256", image.config.slice(7)), "utf8"));
      assert.match(await fails(1, ["inspect", "--raw", "index", v1]), /it has none\nhint: .*--raw manifest/);
    });

    test("history: newest first, sizes at the steps that left a layer", async () => {
      const steps = (await json("history", v1)).history;
      assert.deepEqual(
        steps.map((step: { comment?: string; size: number }) => [step.comment, step.size > 0]),
        [
          ["v1", true],
          [undefined, false],
          [undefined, true],
        ],
      );
      assert.match(await shale("history", v1), /RUN x+\.\.\. +v1\n/);
      assert.match(await shale("history", "--full", v1), /RUN x{100} +v1\n/);
    });

    test("ls: whiteouts applied, links followed inside the image, names as bytes, -l as GNU ls", async () => {
      assert.equal(await shale("ls", v1, "/etc"), "alias\npasswd\n");
      assert.equal(await shale("ls", v2, "/etc"), "alias\nhosts\npasswd\n");
      assert.deepEqual((await run(["ls", v1])).stdout, Buffer.from("app\nbin\ncaf\xe9\ndev\netc\n", "latin1"));
      assert.equal(await shale("ls", "-R", v1, "/etc", "/app"), "/etc:\nalias\npasswd\n\n/app:\nmain\nold\n");
      assert.equal(await shale("ls", "-l", v1, "/dev"), "crw-rw-rw- 1 0 0 1, 3 2026-01-02 03:04 null\n");
      assert.equal(await shale("ls", "-l", v1, "/bin"), "-rwsr-xr-x 1 0 0 10000 2026-01-02 03:04 tool\n");
      assert.match(await shale("ls", "-l", v1, "/etc"), /^lrwxrwxrwx 1 0 0 +6 2026-01-02 03:04 alias -> passwd\n/);
      const { files } = await json("ls", "-R", v1);
      const odd = files.find((file: { pathBase64?: string }) => file.pathBase64 !== undefined);
      assert.deepEqual([odd.path, Buffer.from(odd.pathBase64, "base64").toString("latin1")], ["/caf\\xe9", "/caf\xe9"]);
      assert.match(await fails(1, ["ls", v1, "/etc/hosts"]), /\/etc\/hosts/);
    });

    test("cat: exact bytes, also through a link; refuses what is no file", async () => {
      assert.equal(await shale("cat", v1, "/bin/tool", "/etc/alias"), `${LARGE}root:x:0:0::/root:/bin/sh\n`);
      const [file] = (await json("cat", v1, "/bin/tool")).files;
      assert.equal(Buffer.from(file.base64, "base64").toString(), LARGE);
      assert.match(await fails(1, ["cat", v1, "/etc"]), /Cannot read \/etc: it is not a regular file/);
    });

    test("stat: the link itself, xattrs, digest and place of a payload", async () => {
      assert.match(await shale("stat", v1, "/etc/alias"), /Type: +symlink\n(.*\n)*Target: +passwd\n/);
      assert.match(
        await shale("stat", v1, "/etc/passwd"),
        /Xattr: +user\.note=kept\n(.*\n)*Stored: +inside the metadata image\n/,
      );
      const [tool, copy] = (await json("stat", v2, "/bin/tool", "/app/tool-copy")).files;
      assert.equal(tool.mode, "4755");
      assert.deepEqual(tool.stored, copy.stored); // deduplicated across layers
      assert.match(tool.digest, /^sha256:/);
    });

    test("diff: what differs and how, exit code 1; 0 for equal images", async () => {
      const result = await run(["diff", v1, v2]);
      assert.equal(result.status, 1);
      const lines = result.stdout.toString().split("\n");
      for (const line of ["M /app/main  content (4 B -> 16 B)", "+ /app/new", "- /app/old", "+ /etc/hosts"]) {
        assert.ok(lines.includes(line), `${line} in ${result.stdout}`);
      }
      const { differences, summary } = JSON.parse((await run(["--json", "diff", v1, v2])).stdout.toString());
      assert.equal(differences.length, summary.added + summary.removed + summary.changed);
      assert.equal(await shale("diff", v1, v1), "");
      assert.equal(await shale("diff", "--summary", v1, v1), "no differences\n");
      assert.deepEqual((await json("diff", v1, v1)).differences, []);
    });

    test("df: parts that add up, in JSON and in words", async () => {
      const usage = await json("df");
      assert.equal(usage.stored, usage.blobs + usage.metadata + usage.merged + usage.database + usage.downloads);
      for (const image of usage.images) assert.equal(image.stored, image.unique + image.shared);
      assert.match(await shale("df", "--layers"), /^IMAGE .*\n(.*\n)+\nLAYER .*\n(.*\n)+\nIN SUM\n/);
    });

    test("mount without root is refused with a hint; the list is empty", async () => {
      assert.match(
        await fails(1, ["mount", v1, work], { privileged: false }),
        /Cannot mount .*: this process may not mount \(it lacks CAP_SYS_ADMIN\)\nhint: Run it as root/,
      );
      assert.match(await fails(2, ["mount", v1]), /DIR is missing/);
      assert.deepEqual((await json("mount")).mounts, []);
    });

    test("a name that is absent: what comes close is named", async () => {
      assert.match(await fails(1, ["inspect", `oci:${layout}:v9`]), /hint: It has oci:.*:v1, oci:.*:v2\n/);
      assert.match(await fails(1, ["cat", "--json", "nosuch", "/x"]), /^\{"error":\{"code":"NOT_FOUND"/);
    });
  });

  test("pin, rm, gc: a pinned image stays; removing keeps what others need; a dry run frees nothing", async () => {
    const name = `oci:${layout}:v3`;
    await shale("pull", v1);
    assert.equal(await shale("pin", v1), `${v1}: pinned\n`);
    assert.match(await fails(1, ["rm", v2, v1]), /it is pinned\nhint: Run shale unpin/);
    assert.equal((await json("images")).images.length, 2);
    assert.equal(await shale("unpin", v1), `${v1}: not pinned\n`);
    assert.match(await fails(1, ["rm", name]), /the store has none of this name/);
    assert.deepEqual((await json("rm", "--force", name)).removed, []);
    const removed = await json("rm", v2);
    assert.deepEqual(removed.removed, [v2]);
    assert.equal(typeof removed.elapsedMs, "number");
    const planned = await json("gc", "--dry-run");
    assert.ok(
      planned.items.some(
        (item: { kind: string; why: string }) => item.kind === "layer" && item.why === "no image or snapshot has it",
      ),
    );
    assert.match(await shale("gc", "-n"), /would free /);
    assert.match(await shale("gc"), /^freed .* in .*: .*1 layer/);
    assert.match(await shale("gc"), /^nothing to free/);
    assert.equal(await shale("cat", v1, "/app/main"), "one\n");
    await shale("pull", "-q", v2);
  });

  test("check: damage is told and ends in exit code 1; --repair fetches it again; stray files go to quarantine", async () => {
    assert.match(await shale("check"), /^checked 3 layers, .*\nthe store is sound\n$/);
    const [blob] = readdirSync(join(root, "blobs"));
    const path = join(root, "blobs", blob!);
    const bytes = readFileSync(path);
    bytes[17] = bytes[17]! ^ 1;
    writeFileSync(path, bytes);
    writeFileSync(join(root, "layers/stray"), "");
    const { stdout, status } = await run(["check"]);
    assert.equal(status, 1);
    assert.match(
      stdout.toString(),
      /^layer sha256:.*\n(.*\n)*stray file .*\n(.*\n)*the store is damaged \(\d+ findings\)/,
    );
    const fast = JSON.parse((await run(["check", "--fast", "--json"])).stdout.toString());
    assert.deepEqual([fast.sound, fast.payloads], [false, 0]);
    const repaired = await json("check", "--repair");
    assert.deepEqual([repaired.sound, repaired.remaining], [true, []]);
    assert.ok(repaired.repaired.length > 0);
    for (const layer of repaired.repaired) assert.equal(layer.from, `oci:${layout}`);
    assert.equal(readdirSync(join(root, "quarantine")).length, 1);
    assert.match(await shale("check"), /the store is sound\n$/);
    assert.equal(await shale("cat", v1, "/bin/tool"), LARGE);
  });

  test("mount and umount", { skip: NOBODY.uid === undefined && "needs root" }, async () => {
    const target = join(work, "mnt");
    mkdirSync(target);
    const privileged = { privileged: true };
    try {
      assert.match(
        (await run(["mount", "--rw", v1, target], privileged)).stdout.toString(),
        /is mounted at .*, writable\n$/,
      );
      assert.match((await run(["mount", "--rw", v1, target], privileged)).stdout.toString(), /is already mounted at /);
      assert.equal(readFileSync(join(target, "app/main"), "utf8"), "one\n");
      writeFileSync(join(target, "app/main"), "changed\n");
      const [listed] = JSON.parse((await run(["mount", "--json"], privileged)).stdout.toString()).mounts;
      assert.deepEqual([listed.target, listed.image, listed.mode, listed.state], [target, v1, "merged", "mounted"]);
      assert.match((await run(["mount"], privileged)).stdout.toString(), / writable +merged /);
      const kept = (await run(["umount", "--keep-upper", target], privileged)).stdout.toString();
      const upper = /: unmounted; its changes are in (.*)\n$/.exec(kept)?.[1];
      assert.equal(readFileSync(join(upper!, "app/main"), "utf8"), "changed\n");
      assert.match((await run(["umount", target], privileged)).stdout.toString(), /: nothing was mounted\n$/);
    } finally {
      await run(["umount", "--lazy", target], privileged);
    }
  });
});

describe("mount --pull", () => {
  const target = join(work, "pulled");
  const pulling = ["mount", "--pull", "--json", v2, target];

  test("without the directory or without the right to mount, nothing is fetched and no store made", async () => {
    const nowhere = join(work, "nowhere");
    const missing = await fails(1, ["mount", "--pull", v2, join(work, "missing")], { root: nowhere });
    assert.match(missing, /Cannot mount .* at .*missing: there is no such directory/);
    const refused = await fails(1, ["mount", "--pull", v2, work], { root: nowhere });
    assert.match(refused, /Cannot mount .*: this process may not mount/);
    assert.match(await fails(2, ["mount", "--pull"], { root: nowhere }), /REF and DIR are missing/);
    assert.equal(existsSync(nowhere), false);
  });

  test("fetches what the store lacks, and only that; the merged image is made once", {
    skip: NOBODY.uid === undefined && "needs root",
  }, async () => {
    const options = { privileged: true, root: join(work, "store-of-mount") };
    const answer = async (args: readonly string[]) => {
      const { status, stdout, stderr } = await run(args, options);
      assert.equal(status, 0, stderr.toString());
      return JSON.parse(stdout.toString());
    };
    mkdirSync(target);
    try {
      const first = await answer(pulling);
      assert.equal(first.already, false);
      assert.equal(first.pulled.name, v2);
      assert.ok(first.pulled.layers.every(({ state }: { state: string }) => state === "fetched"));
      assert.deepEqual(readdirSync(join(options.root, "merged")).length, 1);
      assert.equal(readFileSync(join(target, "bin/tool"), "utf8"), LARGE);
      const again = await answer(pulling);
      assert.deepEqual([again.already, again.pulled], [true, undefined]);
      await run(["umount", target], options);
      const stored = await answer(pulling);
      assert.deepEqual([stored.already, stored.pulled], [false, undefined]);
      await run(["umount", target], options);
      const unknown = await fails(1, ["mount", "--pull", `oci:${layout}:v3`, target], options);
      assert.match(unknown, /^shale: Cannot .*v3/m);
      assert.equal((await answer(["mount", "--json"])).mounts.length, 0);
      await fails(1, ["mount", `oci:${layout}:v1`, target], options); // only what --pull says is fetched
      assert.equal((await answer(["--json", "images"])).images.length, 1);
    } finally {
      await run(["umount", "--lazy", target], options);
    }
  });
});

describe("pull", () => {
  test("an image that can't be fetched: the error is told, those before it are kept and reported", async () => {
    const other = join(work, "other");
    const { status, stdout, stderr } = await run(["--json", "pull", v1, `oci:${layout}:v9`], { root: other });
    assert.equal(status, 1);
    assert.equal(JSON.parse(stdout.toString()).images.length, 1);
    assert.match(stderr.toString(), /"code":"NOT_FOUND"/);
    assert.equal(JSON.parse((await run(["images", "--json"], { root: other })).stdout.toString()).images.length, 1);
  });

  test("SIGINT ends it with exit code 130 and a sound store", async () => {
    // A registry that never answers: the pull is in flight when the signal comes.
    const server = createServer(() => undefined);
    const asked = new Promise<void>((resolve) => server.once("request", () => resolve()));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = server.address() as AddressInfo;
      const stopped = join(work, "stopped");
      const child = spawn(SHALE, ["--root", stopped, "pull", `127.0.0.1:${port}/app`], {
        ...NOBODY,
        env: environment,
        stdio: "ignore",
      });
      const ended = new Promise<number | null>((resolve) => child.once("exit", (code) => resolve(code)));
      await asked;
      child.kill("SIGINT");
      assert.equal(await ended, 130);
      assert.match((await run(["check"], { root: stopped })).stdout.toString(), /the store is sound\n$/);
    } finally {
      server.closeAllConnections();
      server.close();
    }
  });
});
