import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import fc from "fast-check";
import { FormatError } from "../../errors/index.ts";
import {
  CORE,
  decodeImage,
  decodePagemap,
  decodeSingle,
  detectImage,
  INVENTORY,
  locateMemory,
  PAGE_SIZE,
  type ProcessTree,
  ProcessTreeReader,
  PSTREE,
  STATS,
} from "./index.ts";
import {
  encodeImage,
  encodeMessage,
  encodePagemap,
  encodeProcesses,
  type SampleProcess,
  varint,
} from "./testing/images.ts";
import { message, u32, u32s, u64 } from "./wire.ts";

const STACK = 0x7ffd_1234_5000;

const SAMPLE: readonly SampleProcess[] = [
  {
    pid: 1,
    ppid: 0,
    comm: "sh",
    runs: [
      { address: 0x400000, pages: 2 },
      { address: STACK, pages: 3 },
    ],
  },
  { pid: 12, ppid: 1, comm: "worker", uid: 1000, executable: "/usr/bin/worker", runs: [{ address: 0x1000, pages: 1 }] },
  { pid: 7, ppid: 1, comm: "logger", runs: [{ address: 0x1000, pages: 1, flags: 1 }] },
  { pid: 13, ppid: 12, comm: "child", runs: [] },
];

function readTree(files: readonly (readonly [string, Uint8Array])[]): ProcessTree {
  const reader = new ProcessTreeReader();
  for (const [name, content] of files) if (ProcessTreeReader.wants(name, content.length)) reader.add(name, content);
  return reader.finish();
}

describe("message()", () => {
  const SAMPLE_MESSAGE = message("sample", { small: u32(1), large: u64(2), list: u32s(3) });

  test("reads numbers up to the end of the address space, and the low bits of negative enums", () => {
    for (const value of [0, 1, 127, 128, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, 2 ** 53]) {
      assert.equal(SAMPLE_MESSAGE.decode(encodeMessage([2, value])).large, value);
    }
    assert.equal(SAMPLE_MESSAGE.decode(encodeMessage([2, 0xffffffffff600000n])).large, 0xffffffffff600000);
    assert.equal(SAMPLE_MESSAGE.decode(encodeMessage([1, -1n])).small, 0xffffffff);
    assert.throws(() => SAMPLE_MESSAGE.decode(encodeMessage([2, 2n ** 53n + 1n])), FormatError);
  });

  test("reads repeated numbers packed and one by one, and passes over unknown fields of every wire type", () => {
    const packed = Buffer.concat([varint(1), varint(300)]);
    const unknown = Buffer.concat([
      varint(9 * 8 + 1),
      Buffer.alloc(8),
      varint(9 * 8 + 5),
      Buffer.alloc(4),
      encodeMessage([9, "text"], [9, -5n]),
    ]);
    const bytes = Buffer.concat([encodeMessage([3, packed], [3, 7]), unknown, encodeMessage([1, 5])]);
    assert.deepEqual(SAMPLE_MESSAGE.decode(bytes), { small: 5, large: undefined, list: [1, 300, 7] });
  });

  for (const [name, bytes] of [
    ["a cut number", Buffer.from([8, 0x80])],
    ["a number of eleven bytes", Buffer.concat([Buffer.from([8]), Buffer.alloc(10, 0x80), Buffer.from([1])])],
    ["a length beyond the end", Buffer.from([4 * 8 + 2, 5, 0])],
    ["another wire type", encodeMessage([1, "text"])],
    ["a group", Buffer.from([4 * 8 + 3])],
    ["field 0", Buffer.from([0, 0])],
    ["a cut fixed number", Buffer.from([4 * 8 + 1, 0, 0])],
  ] as const) {
    test(`rejects ${name}`, () => assert.throws(() => SAMPLE_MESSAGE.decode(bytes), FormatError));
  }
});

describe("images", () => {
  test("detectImage() knows the kinds by their magic numbers", () => {
    for (const kind of ["inventory", "pstree", "core", "mm", "pagemap", "files", "stats"] as const) {
      assert.equal(detectImage(encodeImage(kind, [])), kind);
    }
    for (const bytes of [Buffer.alloc(0), Buffer.alloc(8), Buffer.from("\x19CVT", "latin1")]) {
      assert.equal(detectImage(bytes), undefined);
    }
  });

  test("images of version 1 have one magic number", () => {
    const both = encodeImage("core", [encodeMessage([1, 3])]);
    assert.equal(decodeSingle(both.subarray(4), "core", CORE, "core-1.img").machine, 3);
  });

  test("statistics", () => {
    const dump = encodeMessage([1, 100], [2, 2000], [3, 5], [4, 6], [5, 10], [6, 3], [7, 7]);
    const { dump: read } = decodeSingle(encodeImage("stats", [encodeMessage([1, dump])]), "stats", STATS, "stats-dump");
    assert.equal(read?.frozen, 2000);
    assert.equal(read?.pagesWritten, 7);
  });

  for (const [name, bytes] of [
    ["another kind", encodeImage("mm", [])],
    ["a cut length", Buffer.concat([encodeImage("pstree", []), Buffer.from([9, 0])])],
    ["a length beyond the end", Buffer.concat([encodeImage("pstree", []), Buffer.from([9, 0, 0, 0, 1])])],
    ["no entry", encodeImage("pstree", [])],
  ] as const) {
    test(`decodeSingle() rejects ${name}`, () => {
      assert.throws(() => decodeSingle(bytes, "pstree", PSTREE, "pstree.img"), FormatError);
    });
  }
});

describe("decodePagemap()", () => {
  test("places runs in the pages file, without those of the parent", () => {
    const pagemap = decodePagemap(
      encodePagemap(3, [
        { address: 0x1000, pages: 2 },
        { address: 0x3000, pages: 4, flags: 1 },
        { address: 0x9000, pages: 1, flags: 2 },
        { address: 0xffffffffff600000n, pages: 1, flags: 6 },
      ]),
      "pagemap-1.img",
    );
    assert.deepEqual(
      pagemap.runs.map((run) => run.offset),
      [0, undefined, undefined, 2 * PAGE_SIZE],
    );
    assert.deepEqual({ ...pagemap, runs: 0 }, { pagesId: 3, runs: 0, size: 3 * PAGE_SIZE, parentPages: 4 });
  });

  test("reads entries of before there were flags", () => {
    const bytes = encodeImage("pagemap", [
      encodeMessage([1, 1]),
      encodeMessage([1, 0x1000], [2, 1]),
      encodeMessage([1, 0x2000], [2, 1], [3, 1]),
    ]);
    const { runs, parentPages } = decodePagemap(bytes, "pagemap-1.img");
    assert.deepEqual([runs[0]!.offset, runs[1]!.offset, parentPages], [0, undefined, 1]);
  });

  test("locateMemory() follows a range over adjacent runs, and nothing else", () => {
    const pagemap = decodePagemap(
      encodePagemap(1, [
        { address: 0x1000, pages: 1 },
        { address: 0x5000, pages: 1 },
        { address: 0x6000, pages: 2 },
        { address: 0x8000, pages: 1, flags: 1 },
      ]),
      "x",
    );
    assert.deepEqual(locateMemory(pagemap, 0x5ff0, 0x20), [
      { offset: 0x1ff0, length: 0x10 },
      { offset: 0x2000, length: 0x10 },
    ]);
    for (const [address, length] of [
      [0x1ff0, 0x20],
      [0x7ff0, 0x20],
      [0x4fff, 2],
      [0x9000, 1],
    ] as const) {
      assert.equal(locateMemory(pagemap, address, length), undefined);
    }
  });

  for (const [name, runs] of [
    ["within a page", [{ address: 0x1001, pages: 1 }]],
    [
      "that overlap",
      [
        { address: 0x1000, pages: 2 },
        { address: 0x2000, pages: 1 },
      ],
    ],
    [
      "out of order",
      [
        { address: 0x2000, pages: 1 },
        { address: 0x1000, pages: 1 },
      ],
    ],
    ["beyond the address space", [{ address: 0xfffffffffffff000n, pages: 2 }]],
  ] as const) {
    test(`rejects runs ${name}`, () => assert.throws(() => decodePagemap(encodePagemap(1, runs), "x"), FormatError));
  }
});

describe("ProcessTreeReader", () => {
  test("puts the tree together, parents first", () => {
    const tree = readTree(encodeProcesses(SAMPLE));
    assert.deepEqual(
      tree.processes.map(({ pid, ppid, comm, uid, executable, state, memory, memoryInParent }) => {
        return [pid, ppid, comm, uid, executable, state, memory, memoryInParent];
      }),
      [
        [1, 0, "sh", 0, "/bin/sh", "alive", 5 * PAGE_SIZE, 0],
        [7, 1, "logger", 0, "/bin/sh", "alive", 0, PAGE_SIZE],
        [12, 1, "worker", 1000, "/usr/bin/worker", "alive", PAGE_SIZE, 0],
        [13, 12, "child", 0, "/bin/sh", "alive", 0, 0],
      ],
    );
    assert.deepEqual([tree.architecture, tree.hostname, tree.imageVersion], ["amd64", "host", 2]);
  });

  test("argumentsIn() finds command lines in a pages file", () => {
    const line = { address: STACK + PAGE_SIZE + 100, length: 12 };
    const reader = new ProcessTreeReader();
    const processes = [{ pid: 1, ppid: 0, comm: "sh", runs: SAMPLE[0]!.runs, arguments: line }];
    for (const [name, content] of encodeProcesses(processes)) {
      if (ProcessTreeReader.wants(name, content.length)) reader.add(name, content);
    }
    assert.deepEqual(reader.argumentsIn(1), [{ pid: 1, offset: 3 * PAGE_SIZE + 100, length: 12 }]);
    assert.deepEqual(reader.argumentsIn(2), []);
    reader.addArguments(1, Buffer.from("sh\0-c\0exit\0\0"));
    assert.deepEqual(reader.finish().processes[0]!.arguments, ["sh", "-c", "exit"]);
  });

  test("does without images that are missing, and with parents in a circle", () => {
    const pstree = encodeImage("pstree", [encodeMessage([1, 2], [2, 3]), encodeMessage([1, 3], [2, 2])]);
    const tree = readTree([["pstree.img", pstree]]);
    assert.deepEqual(
      tree.processes.map((process) => [process.pid, process.comm]),
      [
        [2, undefined],
        [3, undefined],
      ],
    );
    assert.deepEqual(readTree([]).processes, []);
  });
});

test("reads what CRIU 4.2.1 wrote", () => {
  const directory = join(import.meta.dirname, "testing/vectors");
  const names = readdirSync(directory).filter((name) => name.endsWith(".img"));
  const tree = readTree(names.map((name) => [name, readFileSync(join(directory, name))]));
  assert.deepEqual(
    tree.processes.map(({ pid, ppid, comm, executable, uid, state, threads, memory }) => {
      return [pid, ppid, comm, executable, uid, state, threads, memory];
    }),
    [
      [1, 0, "sh", "/bin/busybox", 0, "alive", 1, 18 * PAGE_SIZE],
      [26, 1, "sleep", "/bin/busybox", 0, "alive", 1, 17 * PAGE_SIZE],
    ],
  );
  assert.deepEqual([tree.architecture, tree.hostname, tree.imageVersion], ["amd64", "88981fcbab90", 2]);
  const statistics = decodeSingle(readFileSync(join(directory, "stats-dump")), "stats", STATS, "stats-dump");
  assert.equal(statistics.dump?.pagesWritten, 35);
});

test("fuzz: mutated images decode or are a FormatError", () => {
  const files = encodeProcesses(SAMPLE).filter(([name]) => ProcessTreeReader.wants(name, 0));
  const mutation = fc.record({ at: fc.nat(400), byte: fc.nat(255), cut: fc.option(fc.nat(400)) });
  fc.assert(
    fc.property(
      fc.constantFrom(...files),
      fc.array(mutation, { minLength: 1, maxLength: 6 }),
      ([name, content], mutations) => {
        let bytes = Buffer.from(content);
        for (const { at, byte, cut } of mutations) {
          if (bytes.length > 0) bytes[at % bytes.length] = byte;
          if (cut !== null) bytes = bytes.subarray(0, cut);
        }
        const reader = new ProcessTreeReader();
        try {
          reader.add(name, bytes);
          reader.finish();
        } catch (error) {
          assert.ok(error instanceof FormatError, String(error));
        }
      },
    ),
    { numRuns: 2000 },
  );
});

test("decodeImage() gives all entries", () => {
  const bytes = encodeImage("pstree", [encodeMessage([1, 1], [5, 1], [5, 2]), encodeMessage([1, 2])]);
  const threads = [...decodeImage(bytes, "pstree", PSTREE, "x")].map((entry) => entry.threads);
  assert.deepEqual(threads, [[1, 2], []]);
  assert.equal(
    decodeSingle(encodeImage("inventory", [encodeMessage([1, 2])]), "inventory", INVENTORY, "x").imgVersion,
    2,
  );
});
