/**
 * Disk space of all images in one store, against what they hold at least and against directories for overlayfs.
 *
 * The floor is computed independently of shale, from what GNU tar extracts of each distinct layer: the bytes of every
 * distinct regular file content once, and of metadata what no form can do without: per inode 64 bytes (EROFS's extended
 * inode: type, mode, owner, size, time, links), per name 12 bytes and its length, per symbolic link its target. Extended
 * attributes, alignment, manifests and what it takes to give the exact tar back are left out: the floor is a hard one.
 */
import { createHash } from "node:crypto";
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readlinkSync,
  readSync,
  rmSync,
  type Stats,
} from "node:fs";
import { join } from "node:path";
import { shale, shaleCommand } from "../contestants/index.ts";
import type { BenchLayer, Environment } from "../environment.ts";
import { allocatedBytes, syncFileSystem } from "../measure.ts";
import { run } from "../process.ts";
import { atMost, megabytes, times } from "../report.ts";
import type { Scenario } from "./scenario.ts";

const BAR = 1.05;

export const space: Scenario = {
  id: "space",
  summary: "disk space of all images in one store",
  async run(environment, { contestants, log }) {
    const layers = new Map<string, BenchLayer>();
    for (const image of environment.images) for (const layer of image.layers) layers.set(layer.digest, layer);
    const floor = await measureLayers(environment, [...layers.values()], log);
    const unique = floor.content + floor.metadata;
    const compressed = [...layers.values()].reduce((sum, layer) => sum + layer.size, 0);
    const row = (title: string, bytes: number) => [title, megabytes(bytes), times(bytes / unique)];
    const rows = [
      row("distinct file contents", floor.content),
      row("metadata, at least", floor.metadata),
      row("floor: both", unique),
    ];
    const goals = [];
    if (contestants.includes(shale)) {
      const stored = await measureStore(environment);
      goals.push(atMost("five images: stored / floor", stored.total / unique, BAR, times));
      rows.push(row("shale: the whole store", stored.total));
      for (const [name, bytes] of stored.parts) rows.push(row(`  ${name}`, bytes));
    }
    rows.push(
      row("directories for overlayfs, equal layers once", floor.extracted),
      row("the same with the compressed layers that containerd keeps", floor.extracted + compressed),
    );
    return {
      goals,
      tables: [
        {
          title: "Space for five images",
          columns: ["what", "bytes", "to floor"],
          rows,
          notes: [
            "Stores and directories: allocated blocks. Metadata, at least: 64 bytes an inode, 12 and its length a name, link targets.",
          ],
        },
      ],
    };
  },
};

interface Floor {
  content: number;
  metadata: number;
  /** Allocated blocks of all layers extracted side by side. */
  extracted: number;
}

async function measureLayers(
  { work, signal }: Environment,
  layers: readonly BenchLayer[],
  log: (line: string) => void,
): Promise<Floor> {
  const floor: Floor = { content: 0, metadata: 0, extracted: 0 };
  const contents = new Set<string>();
  const directory = join(work, "extracted");
  for (const { path, digest } of layers) {
    mkdirSync(directory);
    try {
      await run(["tar", "-xzpf", path, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-C", directory], {
        signal,
      });
      await syncFileSystem(directory); // blocks are allocated when they are written back
      floor.extracted += allocatedBytes(directory);
      addTree(directory, floor, contents);
      log(`space: layer ${digest.slice(7, 19)} extracted`);
    } finally {
      rmSync(directory, { recursive: true });
    }
  }
  return floor;
}

const INODE = 64;
const NAME = 12;

function addTree(directory: string, floor: Floor, contents: Set<string>): void {
  const inodes = new Set<number>();
  const buffer = Buffer.allocUnsafe(1 << 20);
  const addInode = (path: string, stat: Stats) => {
    if (inodes.has(stat.ino)) return; // another name of a hard link
    inodes.add(stat.ino);
    floor.metadata += INODE;
    if (stat.isSymbolicLink()) floor.metadata += readlinkSync(path, "buffer").length;
    if (!stat.isFile() || stat.size === 0) return;
    const digest = digestOf(path, buffer);
    if (contents.has(digest)) return;
    contents.add(digest);
    floor.content += stat.size;
  };
  const visit = (parent: string) => {
    for (const name of readdirSync(parent)) {
      const path = join(parent, name);
      const stat = lstatSync(path);
      floor.metadata += NAME + Buffer.byteLength(name);
      addInode(path, stat);
      if (stat.isDirectory()) visit(path);
    }
  };
  floor.metadata += INODE;
  visit(directory);
}

function digestOf(path: string, buffer: Buffer): string {
  const file = openSync(path, "r");
  try {
    const hash = createHash("sha256");
    for (let n = readSync(file, buffer); n > 0; n = readSync(file, buffer)) hash.update(buffer.subarray(0, n));
    return hash.digest("latin1");
  } finally {
    closeSync(file);
  }
}

/** All images pulled one after the other, none mounted, nothing tidied up. */
async function measureStore({ work, images, signal }: Environment) {
  const root = join(work, "five");
  try {
    for (const { reference } of images) {
      await shaleCommand(root, ["pull", "--quiet", "--tls-verify=false", reference], { signal });
    }
    await syncFileSystem(root);
    const parts = readdirSync(root)
      .map((name): [string, number] => [name, allocatedBytes(join(root, name))])
      .sort((a, b) => b[1] - a[1]);
    return { total: allocatedBytes(root), parts };
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
}
