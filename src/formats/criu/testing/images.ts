/** CRIU images for tests, by the published .proto files: what CRIU writes, as far as shale reads it. */
import { MAGIC } from "../images.ts";
import { PAGE_SIZE } from "../pagemap.ts";

const IMG_COMMON = 0x54564319;
const IMG_SERVICE = 0x55105940;

export type Value = number | bigint | string | Uint8Array;

/** A protocol-buffer message of (field, value): numbers as varints, the rest with a length. */
export function encodeMessage(...fields: readonly (readonly [number, Value])[]): Buffer {
  return Buffer.concat(
    fields.flatMap(([number, value]) => {
      if (typeof value === "number" || typeof value === "bigint") return [varint(number * 8), varint(value)];
      const bytes = Buffer.from(value);
      return [varint(number * 8 + 2), varint(bytes.length), bytes];
    }),
  );
}

export function varint(value: number | bigint): Buffer {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  for (; rest >= 0x80n; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80);
  return Buffer.from([...bytes, Number(rest)]);
}

export function encodeImage(kind: keyof typeof MAGIC, entries: readonly Uint8Array[]): Buffer {
  const word = (value: number) => {
    const buffer = Buffer.alloc(4);
    buffer.writeUInt32LE(value);
    return buffer;
  };
  const magic: number[] = [MAGIC[kind]];
  if (kind === "stats") magic.unshift(IMG_SERVICE);
  else if (kind !== "inventory") magic.unshift(IMG_COMMON);
  return Buffer.concat([...magic.map(word), ...entries.flatMap((entry) => [word(entry.length), entry])]);
}

export interface SampleRun {
  readonly address: number | bigint;
  readonly pages: number;
  /** PE_PRESENT unless given. */
  readonly flags?: number;
}

export function encodePagemap(pagesId: number, runs: readonly SampleRun[]): Buffer {
  return encodeImage("pagemap", [
    encodeMessage([1, pagesId]),
    ...runs.map(({ address, pages, flags = 4 }) => encodeMessage([1, address], [2, pages], [4, flags], [5, pages])),
  ]);
}

export interface SampleProcess {
  readonly pid: number;
  readonly ppid: number;
  readonly comm: string;
  readonly uid?: number;
  readonly executable?: string;
  readonly runs: readonly SampleRun[];
  /** Content of its pages file; zeros unless given. */
  readonly memory?: Uint8Array;
  /** Place of its command line in its memory. */
  readonly arguments?: { readonly address: number; readonly length: number };
}

/** All images of a process tree, as [name in checkpoint/, content], in the order of their names. */
export function encodeProcesses(processes: readonly SampleProcess[]): [name: string, content: Buffer][] {
  const files: [string, Buffer][] = [
    ["inventory.img", encodeImage("inventory", [encodeMessage([1, 2], [11, 1])])],
    [
      "pstree.img",
      encodeImage(
        "pstree",
        processes.map(({ pid, ppid }) => encodeMessage([1, pid], [2, ppid], [3, pid], [4, 1], [5, pid])),
      ),
    ],
    ["utsns-11.img", encodeImage("utsns", [encodeMessage([1, "host"], [2, "(none)"])])],
    [
      "files.img",
      encodeImage(
        "files",
        processes.map(({ pid, executable = "/bin/sh" }) =>
          encodeMessage([1, 1], [2, pid + 100], [3, encodeMessage([1, pid + 100], [6, executable])]),
        ),
      ),
    ],
  ];
  for (const [i, { pid, comm, uid = 0, runs, memory, arguments: place }] of processes.entries()) {
    const task = encodeMessage([1, 1], [2, 0], [3, 0], [4, 0x400100], [5, 2n ** 64n - 1n], [6, comm]);
    const thread = encodeMessage([1, 0], [2, 24], [10, encodeMessage([1, uid], [2, uid])], [13, comm]);
    files.push([`core-${pid}.img`, encodeImage("core", [encodeMessage([1, 1], [3, task], [5, thread])])]);
    const span = place ?? { address: 0, length: 0 };
    const mm = encodeMessage([1, 0x400000], [8, span.address], [9, span.address + span.length], [12, pid + 100]);
    files.push([`mm-${pid}.img`, encodeImage("mm", [mm])]);
    files.push([`pagemap-${pid}.img`, encodePagemap(i + 1, runs)]);
    const present = runs.filter(({ flags = 4 }) => (flags & 4) !== 0);
    const size = present.reduce((sum, { pages }) => sum + pages * PAGE_SIZE, 0);
    files.push([`pages-${i + 1}.img`, Buffer.from(memory ?? Buffer.alloc(size))]);
  }
  return files.sort(([a], [b]) => (a < b ? -1 : 1));
}
