/**
 * Checkpoints against podman, in the laboratory of tests/checkpoint: recipe R (11 files of 100 MB), S (30,000 small files) and M
 * (1 GiB of memory), on XFS with reflinks and on ext4. Whole commands, the start of Node and of podman included.
 */
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { delay } from "../../src/async/index.ts";
import { Lab, type LabFileSystem } from "../../tests/checkpoint/lab.ts";
import { median, syncFileSystem, timed } from "../measure.ts";
import { ensurePeerTree } from "../peer-tree.ts";
import { run } from "../process.ts";
import { atLeast, atMost, type Goal, megabytes, reported, seconds, type Table, times } from "../report.ts";
import type { Scenario } from "./scenario.ts";

type Recipe = "R" | "S" | "M";

/** Run by the laboratory's Node in the container's root. */
const FILES: Readonly<Record<Recipe, string>> = {
  R: `const fs = require("fs"), c = require("crypto");
    for (let i = 0; i < 11; i++) fs.writeFileSync("f" + i, c.randomBytes(100 << 20));`,
  S: `const fs = require("fs"), c = require("crypto");
    for (let d = 0; d < 300; d++) { fs.mkdirSync("d" + d); const text = Buffer.from(c.randomBytes(1 << 20).toString("hex"));
      for (let i = 0, at = 0; i < 100; i++) { const n = (d * 100 + i) % 3;
        const size = n === 0 ? 1000 + i * 37 : n === 1 ? 6000 + i * 60 : 45000 + i * 50;
        fs.writeFileSync("d" + d + "/f" + i, text.subarray(at, at + size)); at += size; } }`,
  M: "",
};
/** busybox's tail keeps what it may have to print: 1 GiB of random bytes, which no page of is like another. */
const WORK: Readonly<Record<Recipe, string>> = {
  R: "touch /ready; while :; do sleep 1; done",
  S: "touch /ready; while :; do sleep 1; done",
  M: "(head -c 1073741824 /dev/urandom; touch /ready; while :; do sleep 1; done) | tail -c 1073741824 >/dev/null",
};

interface Sample {
  readonly seconds: number;
  /** With what it left to be written out: podman's archives are not durable when its command ends, shale's are. */
  readonly durable: number;
  /** Bytes written to the block device, and taken from the file system. */
  readonly device: number;
  readonly space: number;
}

const SPACE_BAR = 0.01;
const OWN_BAR = 0.3;
const MEMORY_BAR = 200e6;

export const checkpoint: Scenario = {
  id: "checkpoint",
  summary: "shale checkpoint against podman: files, small files, memory; with reflinks and without",
  async run(_environment, { rounds, log }) {
    await ensurePeerTree();
    const goals: Goal[] = [];
    const tables: Table[] = [];
    for (const type of ["xfs", "ext4"] as const) {
      await using lab = await Lab.start({ type });
      const bench = new Bench(lab, type, log);
      for (const recipe of type === "xfs" ? (["R", "S", "M"] as const) : (["R"] as const)) {
        for (let round = 0; round < rounds; round++) await bench.round(recipe);
      }
      goals.push(...bench.goals());
      tables.push(bench.table());
    }
    return { goals, tables };
  },
};

class Bench {
  readonly #lab: Lab;
  readonly #type: LabFileSystem;
  readonly #log: (line: string) => void;
  readonly #samples = new Map<string, Sample[]>();
  readonly #sizes = new Map<Recipe, number>();
  #memory = 0;

  constructor(lab: Lab, type: LabFileSystem, log: (line: string) => void) {
    this.#lab = lab;
    this.#type = type;
    this.#log = log;
  }

  /** podman's way and shale's, each with a container of its own; and with zstd where there are files. */
  async round(recipe: Recipe): Promise<void> {
    for (const compression of recipe === "M" ? ["none"] : ["none", "zstd"]) {
      if (compression === "zstd" && this.#type !== "xfs") continue;
      await this.#podman(recipe, compression);
      await this.#shale(recipe, compression);
    }
  }

  async #podman(recipe: Recipe, compression: string): Promise<void> {
    await this.#start(recipe);
    const archive = "/w/disk/podman.tar";
    const export_ = ["podman", "container", "checkpoint", "-e", archive, `--compress=${compression}`, "c1"];
    await this.#measure(`${recipe} ${compression}: podman checkpoint`, () => this.#lab.exec(...export_));
    await this.#lab.exec("podman", "rm", "-f", "-t0", "c1");
    await this.#lab.script("clean");
    const import_ = ["podman", "container", "restore", "-i", archive, "-n", "r1"];
    await this.#measure(`${recipe} ${compression}: podman restore`, () => this.#lab.exec(...import_));
    await this.#lab.clean();
    await this.#lab.exec("rm", "-f", archive);
  }

  async #shale(recipe: Recipe, compression: string): Promise<void> {
    const lower = await this.#start(recipe);
    const archive = "/w/disk/shale.tar";
    const save = ["checkpoint", "save", "c1", "-o", archive, "--compress", compression];
    await this.#measure(`${recipe} ${compression}: shale save`, () => this.#lab.shale(...save));
    this.#sizes.set(recipe, statSync(join(this.#lab.disk, "shale.tar")).size);
    // The writing alone, of what the engine left: what save does beside asking podman.
    const inspect = async (what: string) => (await this.#lab.exec("podman", "inspect", "c1", "--format", what)).trim();
    const [bundle, upper] = [await inspect("{{.StaticDir}}"), await inspect("{{.GraphDriver.Data.UpperDir}}")];
    const sources = ["--meta", bundle, "--rootfs-diff", upper, ...lower.flatMap((path) => ["--lower", path])];
    const write = ["checkpoint", "write", "-o", "/w/disk/alone.tar", "--compress", compression, ...sources];
    await this.#measure(`${recipe} ${compression}: shale write, files only`, () => this.#lab.shale(...write));
    await this.#lab.exec("rm", "-f", "/w/disk/alone.tar");
    await this.#lab.exec("podman", "rm", "-f", "-t0", "c1");
    await this.#lab.script("clean");
    const places = (name: string) => ["--upper", `/w/disk/${name}/diff`, "--bundle", `/w/disk/${name}/bundle`];
    const lowers = lower.flatMap((path) => ["--lower", path]);
    await this.#lab.exec("mkdir", "/w/disk/files", "/w/disk/run");
    await this.#measure(`${recipe} ${compression}: shale restore, files only`, async () => {
      await this.#lab.shale("checkpoint", "restore", archive, ...places("files"), ...lowers);
    });
    // podman's restore has no second copy of the files on the disk either.
    await this.#lab.exec("rm", "-rf", "/w/disk/files");
    await this.#measure(`${recipe} ${compression}: shale restore`, async () => {
      const start = ["--run", "crun", "--name", "r1"];
      await this.#lab.shale("checkpoint", "restore", archive, ...places("run"), ...lowers, ...start);
    });
    await this.#lab.try("crun", "delete", "-f", "r1");
    await this.#lab.try("umount", "/w/disk/run/bundle/rootfs");
    await this.#lab.exec("rm", "-rf", archive, "/w/disk/run");
    this.#memory = Math.max(this.#memory, this.#lab.peakMemory());
    await this.#lab.clean();
  }

  /** A running container with the recipe's content, all of it on disk; answers its lower directories. */
  async #start(recipe: Recipe): Promise<readonly string[]> {
    await this.#lab.clean();
    await this.#lab.exec("podman", "run", "-d", "--name", "c1", "--network=none", "lab", "sh", "-c", WORK[recipe]);
    const root = (await this.#lab.exec("podman", "mount", "c1")).trim();
    await this.#lab.exec("env", "-C", root, "/w/shale/node", "-e", FILES[recipe]);
    for (let tries = 0; tries < 600; tries++) {
      if ((await this.#lab.try("test", "-e", `${root}/ready`)).code === 0) break;
      await delay(200);
    }
    await syncFileSystem(this.#lab.disk);
    return (await this.#lab.exec("podman", "inspect", "c1", "--format", "{{.GraphDriver.Data.LowerDir}}"))
      .trim()
      .split(":");
  }

  async #measure(name: string, work: () => Promise<unknown>): Promise<void> {
    await syncFileSystem(this.#lab.disk);
    const before = await this.#usage();
    const { seconds: time } = await timed(work);
    const { seconds: sync } = await timed(() => syncFileSystem(this.#lab.disk));
    const after = await this.#usage();
    const sample = {
      seconds: time,
      durable: time + sync,
      device: after.device - before.device,
      space: after.space - before.space,
    };
    this.#samples.set(name, [...(this.#samples.get(name) ?? []), sample]);
    this.#log(
      `checkpoint on ${this.#type}: ${name} ${seconds(time)}, device ${megabytes(sample.device)}, space ${megabytes(sample.space)}`,
    );
  }

  async #usage(): Promise<{ readonly device: number; readonly space: number }> {
    const source = (await run(["findmnt", "-no", "SOURCE", this.#lab.disk])).trim();
    const fields = readFileSync(`/sys/block/${source.replace("/dev/", "")}/stat`, "utf8")
      .trim()
      .split(/\s+/);
    const used = (await run(["df", "-B1", "--output=used", this.#lab.disk])).split("\n")[1];
    return { device: Number(fields[6]) * 512, space: Number(used) };
  }

  #of(name: string, field: keyof Sample = "seconds"): number {
    return median(this.#samples.get(name)!.map((sample) => sample[field]));
  }

  goals(): Goal[] {
    const ratio = (recipe: Recipe, compression: string, peer: string, own: string, field: keyof Sample = "seconds") =>
      this.#of(`${recipe} ${compression}: ${peer}`, field) / this.#of(`${recipe} ${compression}: ${own}`, field);
    const both = (recipe: Recipe, compression: string, bar: number): Goal[] => [
      atLeast(
        `${this.#type}, recipe ${recipe}, ${compression}: podman checkpoint / shale save`,
        ratio(recipe, compression, "podman checkpoint", "shale save"),
        bar,
        times,
      ),
      reported(
        `${this.#type}, recipe ${recipe}, ${compression}: the same, until both archives are durable`,
        ratio(recipe, compression, "podman checkpoint", "shale save", "durable"),
        times,
      ),
      atLeast(
        `${this.#type}, recipe ${recipe}, ${compression}: podman restore / shale restore`,
        ratio(recipe, compression, "podman restore", "shale restore"),
        bar,
        times,
      ),
    ];
    const size = this.#sizes.get("R")!;
    const part = (value: number) => `${(value * 100).toFixed(2)} %`;
    if (this.#type !== "xfs") {
      return [
        ...both("R", "none", 2),
        atMost(
          "ext4, recipe R: written by shale save, of the archive",
          this.#of("R none: shale save", "device") / size,
          1.02,
          part,
        ),
        atMost(
          "ext4, recipe R: written by shale restore, of the archive",
          this.#of("R none: shale restore", "device") / size,
          1.02,
          part,
        ),
      ];
    }
    const own = ["shale write, files only", "shale restore, files only"];
    return [
      ...own.map((name) => atMost(`xfs, recipe R: ${name}`, this.#of(`R none: ${name}`), OWN_BAR, seconds)),
      ...own.map((name) =>
        atMost(
          `xfs, recipe R: ${name}: written to the device, of the data`,
          this.#of(`R none: ${name}`, "device") / size,
          SPACE_BAR,
          part,
        ),
      ),
      ...own.map((name) =>
        atMost(
          `xfs, recipe R: ${name}: space taken, of the data`,
          this.#of(`R none: ${name}`, "space") / size,
          SPACE_BAR,
          part,
        ),
      ),
      ...both("R", "none", 10),
      ...both("S", "none", 2),
      ...both("M", "none", 3),
      ...both("R", "zstd", 3),
      ...both("S", "zstd", 3),
      atMost("memory of shale, any recipe", this.#memory, MEMORY_BAR, megabytes),
    ];
  }

  table(): Table {
    const rows = [...this.#samples.keys()].map((name) => [
      name,
      seconds(this.#of(name)),
      seconds(this.#of(name, "durable")),
      megabytes(this.#of(name, "device")),
      megabytes(this.#of(name, "space")),
    ]);
    return {
      title: `Checkpoints on ${this.#type}`,
      columns: ["step", "median", "with syncfs", "written to the device", "space taken"],
      rows,
      notes: [
        "R: 11 files of 100 MB of noise. S: 30,000 files of 1 to 50 kB of hexadecimal noise. M: 1 GiB of memory. crun, no network.",
        '"files only": the archive or the directories, without CRIU and the engine. The device is a loop file with direct I/O.',
      ],
    };
  }
}
