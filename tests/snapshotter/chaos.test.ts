/**
 * Things go wrong while containers run: the daemon is killed at each point that it passes, containerd is killed, the registry
 * is away, the clock jumps, many pull at once, images go while they come, the disk is full. Containers see no error, what
 * failed works when it is tried again, and in the end nothing is left.
 *
 * The daemon is killed at points drawn at random, of each of the three ways: every run finds other ones, and its seed is printed;
 * only in CI they are always the same, so that a change is judged by what it changes. SHALE_CHAOS_SEED=TEXT draws the same again, SHALE_CHAOS_KILLS=N draws N a way, SHALE_CHAOS_KILLS=all takes every point (hours).
 */
import assert from "node:assert/strict";
import { hash } from "node:crypto";
import { globSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";
import { mapConcurrent } from "../../src/async/index.ts";
import { noise } from "../../src/store/testing/fixtures.ts";
import { assertEmpty } from "./testing/empty.ts";
import { type Pushed, push, pushChain } from "./testing/images.ts";
import { Machine, mountsBelow, type Way, ensureTools, needsRoot } from "./testing/machine.ts";
import { run, until } from "./testing/processes.ts";
import { Witness } from "./testing/witness.ts";

before(ensureTools);

const ANY_SEED = process.env.CI === "true" ? "ci" : String(Date.now());
const { SHALE_CHAOS_SEED: SEED = ANY_SEED, SHALE_CHAOS_KILLS: KILLS = "8" } = process.env;

/** What is in the store, by kind: the same before and after something that was undone. */
function inventory({ root }: Machine): Readonly<Record<string, number>> {
  using database = new DatabaseSync(join(root, "shale.db"), { readOnly: true });
  const rows = (table: string) => Number(database.prepare(`SELECT count(*) AS n FROM ${table}`).get()?.n);
  const tables = ["snapshots", "host_mounts", "layers", "blobs", "merged"];
  const files = ["snapshots", "layers", "blobs", "merged", "staging", "mounts"];
  return {
    mounted: mountsBelow(root).length,
    ...Object.fromEntries(tables.map((name) => [`rows of ${name}`, rows(name)])),
    ...Object.fromEntries(files.map((name) => [`files in ${name}`, globSync(join(root, name, "*")).length])),
  };
}

/** Pull, run, remove: every call that containerd makes. Rejects where the daemon dies in between. */
async function work(machine: Machine, { name }: Pushed): Promise<void> {
  await machine.pull(name);
  await machine.runContainer(name, `c${counter++}`, [
    "sh",
    "-ec",
    "[ $(cat /kinds/opaque/new) = above ] && echo x >/y",
  ]);
  await undo(machine, name);
}

async function undo(machine: Machine, name: string): Promise<void> {
  const { stdout } = await machine.ctr("containers", "ls", "-q");
  for (const id of stdout.split("\n").filter((one) => /^c\d+$/.test(one))) {
    await machine.ctr("tasks", "rm", "-f", id);
    await machine.mustCtr("containers", "rm", id);
  }
  const { stdout: images } = await machine.ctr("images", "ls", "-q");
  if (images.includes(machine.reference(name))) await machine.mustCtr("images", "rm", machine.reference(name));
  // Of a pull that failed: its lease keeps what it had.
  const { stdout: leases } = await machine.ctr("leases", "ls", "-q");
  for (const id of leases.split("\n").filter((one) => one !== "")) await machine.mustCtr("leases", "delete", id);
  await machine.collect();
}

let counter = 0;

/**
 * Starts the daemon; its crash points are recorded, or killed at, from here on: what the start itself passes depends on what the
 * last daemon left, and would shift the number of every later point. (Those of the start are the crash tests' of the store.)
 */
async function startWithPoints(machine: Machine, env: Readonly<Record<string, string>>): Promise<void> {
  const mark = join(machine.directory, "from-here");
  rmSync(mark, { force: true });
  await machine.stopDaemon();
  await machine.startDaemon({ ...env, SHALE_CRASH_FROM: mark });
  writeFileSync(mark, "");
}

/** The crash points that `work` passes, in their order, as NAME#K. */
async function record(machine: Machine, image: Pushed): Promise<string[]> {
  const log = join(machine.directory, "points");
  await startWithPoints(machine, { SHALE_CRASH_RECORD: log });
  await work(machine, image);
  const seen = new Map<string, number>();
  const points: string[] = [];
  for (const line of readFileSync(log, "utf8").split("\n")) {
    const name = line.slice(0, line.indexOf("\t"));
    if (name === "") continue;
    seen.set(name, (seen.get(name) ?? 0) + 1);
    points.push(`${name}#${seen.get(name)}`);
  }
  await machine.stopDaemon();
  await machine.startDaemon({});
  return points;
}

const WAYS: readonly Way[] = ["remote", "differ", "plain"];
/** Names of points at which some daemon has been killed: the next way is first killed at others. */
const covered = new Set<string>();

for (const way of WAYS) {
  test(`kill -9 of the daemon at each point of a pull by ${way}, a run and a removal`, needsRoot, async (t) => {
    await using machine = await Machine.start({ generation: "2.1", way });
    const [, app, changed] = await pushChain(machine);
    await machine.pull(app.name);
    const witness = await Witness.start(machine, app.name);
    await work(machine, changed);
    await machine.shale("gc");
    let expected = inventory(machine);
    // What the daemon is doing has a lease, which leaves something to the next collection.
    for (let last = ""; last !== JSON.stringify(expected); expected = inventory(machine)) {
      last = JSON.stringify(expected);
      await machine.shale("gc");
    }
    const points = await record(machine, changed);
    assert.ok(points.length > 20, `only ${points.join()}`);
    const chosen = KILLS === "all" ? points : draw(points, Number(KILLS));
    t.diagnostic(`SHALE_CHAOS_SEED=${SEED}: ${chosen.join(" ")}`);
    let killed = 0;
    const missed: string[] = [];
    for (const point of chosen) {
      await startWithPoints(machine, { SHALE_CRASH_AT: point });
      const failure = await work(machine, changed).then(
        () => undefined,
        (error: unknown) => error,
      );
      if (failure !== undefined) assert.equal(await endOf(machine), "SIGKILL", `${point}: ${String(failure)}`);
      await machine.stopDaemon(); // What goes on in the background may come to the point only now.
      if ((await machine.daemon.ended) === "SIGKILL") {
        killed++;
        covered.add(nameOf(point));
      } else missed.push(point); // threads and timers have their own order
      await machine.startDaemon({});
      await undo(machine, changed.name);
      await work(machine, changed).catch((error: unknown) => {
        throw new Error(`After a kill at ${point} the same work fails`, { cause: error });
      });
      for (let tries = 0; tries < 10 && !isDeepStrictEqual(inventory(machine), expected); tries++)
        await machine.shale("gc");
      assert.deepEqual(inventory(machine), expected, point);
    }
    t.diagnostic(`killed at ${killed} of ${chosen.length}, drawn of ${points.length}; not passed: ${missed.join(" ")}`);
    assert.ok(killed * 2 > chosen.length, `most of ${chosen.join()} were not passed again: ${missed.join()}`);
    await witness.assertWell();
    await witness.end();
    await machine.removeEverything();
    await machine.stopDaemon();
    assertEmpty(machine);
  });
}

/**
 * `count` points in an order that the seed decides. Names that no way has been killed at come first, then each name once, before
 * any comes twice: thousands of writes would else hide the one rename.
 */
function draw(points: readonly string[], count: number): string[] {
  const order = (text: string) => hash("sha256", `${SEED} ${text}`);
  const shuffled = points.toSorted((a, b) => (order(a) < order(b) ? -1 : 1));
  const names = new Set<string>();
  const firsts = shuffled.filter((point) => !names.has(nameOf(point)) && names.add(nameOf(point)));
  const fresh = firsts.filter((point) => !covered.has(nameOf(point)));
  return [...new Set([...fresh, ...firsts, ...shuffled])].slice(0, count);
}

function nameOf(point: string): string {
  return point.slice(0, point.indexOf("#"));
}

/** How the daemon ended, when a call has just failed because of that; "running" when it has not. */
async function endOf(machine: Machine): Promise<unknown> {
  return await Promise.race([machine.daemon.ended, sleep(5_000, "running")]);
}

test(
  "containerd killed, registry away, clock jumping, many pulls at once, images removed while they come",
  needsRoot,
  async (t) => {
    const faketime = globSync("/usr/lib/*/faketime/libfaketimeMT.so.1")[0];
    assert.ok(faketime, "libfaketime is missing");
    await using machine = await Machine.start({ generation: "2.1", way: "remote" });
    const [base, app, changed] = await pushChain(machine);
    await machine.pull(app.name);
    const witness = await Witness.start(machine, app.name);

    await t.test("kill -9 of containerd in the middle of a pull and with containers", async () => {
      const pulling = machine.pull(changed.name).catch((error: unknown) => error);
      await machine.stopContainerd("KILL");
      await pulling;
      await machine.startContainerd();
      await witness.assertWell();
      await undo(machine, changed.name);
      await work(machine, changed);
    });

    await t.test("kill -9 of both, the daemon started last", async () => {
      await machine.stopContainerd("KILL");
      await machine.stopDaemon("SIGKILL");
      await machine.startContainerd();
      const away = await machine.ctr("snapshots", "--snapshotter", "shale", "ls");
      assert.notEqual(away.code, 0, "containerd answers for a daemon that is away");
      await machine.startDaemon({});
      await until(async () => (await machine.ctr("images", "check", "--snapshotter", "shale")).code === 0);
      await witness.assertWell();
      await work(machine, changed);
    });

    await t.test("registry down while the daemon starts: what is there runs, what is not comes later", async () => {
      await machine.registry.stop();
      await machine.stopDaemon();
      await machine.startDaemon({});
      await machine.runContainer(app.name, "without", ["sh", "-ec", "[ -d /kinds/dirs/42 ]"]);
      await assert.rejects(machine.pull(changed.name), /connection refused/);
      await machine.registry.start();
      await work(machine, changed);
      await witness.assertWell();
    });

    await t.test("the daemon's clock jumps two days back and forth", async () => {
      const clock = join(machine.directory, "clock");
      const jump = (by: string) => writeFileSync(clock, by);
      jump("+0");
      await machine.stopDaemon();
      const fake = {
        LD_PRELOAD: faketime,
        FAKETIME_TIMESTAMP_FILE: clock,
        FAKETIME_NO_CACHE: "1",
        FAKETIME_DONT_FAKE_MONOTONIC: "1",
      };
      await machine.startDaemon(fake);
      for (const by of ["-2d", "+2d", "+0"]) {
        jump(by);
        await work(machine, changed);
      }
      jump("-2d");
      await machine.stopDaemon("SIGKILL");
      await machine.startDaemon({});
      await work(machine, changed);
      await witness.assertWell();
      rmSync(clock);
    });

    await t.test("50 pulls at once, of the same image and of different ones", async () => {
      const [first] = base.image.layers;
      const others = await mapConcurrent(
        Array.from({ length: 25 }, (_, i) => i),
        4,
        (i) =>
          push(machine, `test/many-${i}:v1`, [
            first!.tar,
            { [`file-${i}`]: noise(300_000, i) },
            { shared: noise(100_000, "x") },
          ]),
      );
      const pulls = [...others, ...others.map(() => changed)];
      await Promise.all(pulls.map(({ name }) => machine.pull(name)));
      for (const { name } of others.slice(0, 3)) await machine.runContainer(name, `c${counter++}`, ["ls", "/shared"]);
      await machine.runContainer(changed.name, `c${counter++}`, ["ls", "/kinds/opaque/new"]);
      await witness.assertWell();
      for (const { name } of pulls.slice(0, 26)) await machine.mustCtr("images", "rm", machine.reference(name));
      await machine.collect();
    });

    await t.test("an image is removed again and again while it is pulled", async () => {
      let pulling = true;
      const removing = (async () => {
        while (pulling) {
          await machine.ctr("images", "rm", "--sync", machine.reference(changed.name));
          await machine.shale("gc");
        }
      })();
      for (let round = 0; round < 8; round++) await machine.pull(changed.name);
      pulling = false;
      await removing;
      await undo(machine, changed.name);
      await work(machine, changed);
      await witness.assertWell();
    });

    await witness.end();
    await machine.removeEverything();
    await machine.stopDaemon();
    assertEmpty(machine);
  },
);

test(
  "a full disk refuses pulls with a reason, disturbs no container, and works again when there is room",
  needsRoot,
  async () => {
    await using machine = await Machine.start({
      generation: "2.1",
      way: "remote",
      diskSize: 96 << 20,
      config: "[disk]\nhigh_watermark = 90\nlow_watermark = 80",
    });
    const [, app] = await pushChain(machine);
    const large = await push(machine, "test/large:v1", [{ large: noise(64 << 20, "large") }]);
    const small = await push(machine, "test/small:v1", [app.image.layers[0]!.tar, { small: noise(1 << 20, "small") }]);
    await machine.pull(app.name);
    const witness = await Witness.start(machine, app.name);

    // More than there is: the disk fills up in the middle.
    await assert.rejects(machine.pull(large.name), /disk is full|no space left|resource exhausted/i);
    await undo(machine, large.name);
    await machine.shale("gc");

    // Above the mark nothing is begun, and the message says so.
    const filler = join(machine.root, "filler");
    const { stdout } = await run(["df", "--output=avail", "-B1", machine.root]);
    writeFileSync(filler, Buffer.alloc(Math.floor(Number(stdout.split("\n")[1]) - (4 << 20)), 1));
    await assert.rejects(machine.pull(small.name), /the mark is at 90%/);
    await witness.assertWell();
    rmSync(filler);
    await undo(machine, small.name);
    await machine.pull(small.name);
    await machine.runContainer(small.name, "c-small", ["ls", "/small"]);
    await witness.assertWell();
    await witness.end();
    await machine.removeEverything();
    await machine.stopDaemon();
    rmSync(join(machine.root, "lost+found"), { recursive: true });
    assertEmpty(machine);
  },
);
