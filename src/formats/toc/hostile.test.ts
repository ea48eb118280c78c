/** TOCs that lie, and what is said of them. */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { zstdCompressSync } from "node:zlib";
import { encodeTarHeader, TAR_END, tarPadding } from "../tar/index.ts";
import { header } from "../tar/testing.ts";
import { DEFAULT_TOC_LIMITS, LayerToc, type TocLimits, type ZstdChunkedLocation } from "./index.ts";
import { regionOf, replay } from "./testing.ts";
import { Crc64, TarSplitEncoder } from "./writing.ts";

const CONTENT = Buffer.from("content of a file\n");
const DIGEST = `sha256:${createHash("sha256").update(CONTENT).digest("hex")}`;

interface Made {
  readonly toc: unknown;
  readonly tarSplit: string;
}

/** A layer of a directory and a file, as JSON values to be changed. */
function sound(): { toc: { version: number; entries: Record<string, unknown>[] }; lines: string[] } {
  const file = header({
    path: "d/f",
    size: CONTENT.length,
    mode: 0o4755,
    uid: 5,
    xattrs: [{ name: "user.a", value: "v" }],
  });
  const encoder = new TarSplitEncoder();
  const lines = [
    encoder.bytes(encodeTarHeader(header({ path: "d/", type: "directory" }))),
    encoder.content("d/", 0, undefined),
    encoder.bytes(encodeTarHeader(file)),
    encoder.content("d/f", CONTENT.length, new Crc64().update(CONTENT).digest()),
    encoder.bytes(Buffer.concat([tarPadding(CONTENT.length), TAR_END])),
  ];
  const entries = [
    { type: "dir", name: "d/", mode: 0o755 },
    {
      ...{ type: "reg", name: "d/f", mode: 0o4755, size: CONTENT.length, uid: 5, digest: DIGEST },
      ...{ offset: 10, endOffset: 60, xattrs: { "user.a": "dg==" } },
    },
  ];
  return { toc: { version: 1, entries }, lines };
}

async function open({ toc, tarSplit }: Made, limits: Partial<TocLimits> = {}): Promise<[LayerToc, Buffer]> {
  const stored = zstdCompressSync(tarSplit);
  const tarSplitDigest = `sha256:${createHash("sha256").update(stored).digest("hex")}`;
  const json = typeof toc === "string" ? toc : JSON.stringify({ tarSplitDigest, ...(toc as object) });
  const tocStored = zstdCompressSync(json);
  const start = 100;
  const blob = Buffer.alloc(start + tocStored.length + 8 + stored.length + 72);
  tocStored.copy(blob, start);
  stored.copy(blob, start + tocStored.length + 8);
  const location: ZstdChunkedLocation = {
    format: "zstd:chunked",
    blobSize: blob.length,
    region: { offset: start, length: tocStored.length + 8 + stored.length },
    toc: { offset: start, length: tocStored.length, size: Buffer.byteLength(json) },
    tarSplit: { offset: start + tocStored.length + 8, length: stored.length, size: tarSplit.length },
    digest: undefined,
  };
  return [await LayerToc.open(location, regionOf(blob), { limits }), blob];
}

async function play(made: Made): Promise<number> {
  const [toc] = await open(made);
  let payloads = 0;
  for await (const _ of toc.replay({ raw() {}, entry() {}, payload() {}, endEntry() {} })) payloads++;
  return payloads;
}

type Sound = ReturnType<typeof sound>;

const HOSTILE: readonly { readonly name: string; readonly change: (layer: Sound) => void; readonly says: RegExp }[] = [
  {
    name: "another version",
    change: ({ toc }) => {
      toc.version = 2;
    },
    says: /version: must be 1/,
  },
  {
    name: "an unknown type",
    change: ({ toc }) => {
      toc.entries[0]!.type = "socket";
    },
    says: /"socket" is not known/,
  },
  {
    name: "an entry without a name",
    change: ({ toc }) => void delete toc.entries[0]!.name,
    says: /name at byte \d+: is empty/,
  },
  {
    name: "a name that is a number",
    change: ({ toc }) => {
      toc.entries[0]!.name = 5;
    },
    says: /name at byte \d+: is no string/,
  },
  {
    name: "a NUL in a name",
    change: ({ toc }) => {
      toc.entries[0]!.name = "a\0b";
    },
    says: /has a NUL/,
  },
  {
    name: "a long name",
    change: ({ toc }) => {
      toc.entries[0]!.name = "n".repeat(5000);
    },
    says: /more than 4096 bytes/,
  },
  {
    name: "a member in another case",
    change: ({ toc }) => {
      toc.entries[1]!.Size = 1;
    },
    says: /"Size".*case only/,
  },
  {
    name: "a negative size",
    change: ({ toc }) => {
      toc.entries[1]!.size = -1;
    },
    says: /size.*no whole number/,
  },
  {
    name: "a size over 2^53",
    change: ({ toc }) => {
      toc.entries[1]!.size = 2 ** 60;
    },
    says: /size.*no whole number/,
  },
  {
    name: "a digest of another algorithm",
    change: ({ toc }) => {
      toc.entries[1]!.digest = "md5:00";
    },
    says: /digest of "d\/f".*must be "sha256:"/,
  },
  {
    name: "no digest",
    change: ({ toc }) => void delete toc.entries[1]!.digest,
    says: /chunkDigest of "d\/f".*is missing/,
  },
  {
    name: "a chunk type",
    change: ({ toc }) => {
      toc.entries[1]!.chunkType = "copy";
    },
    says: /"copy" is not known/,
  },
  {
    name: "a time that is none",
    change: ({ toc }) => {
      toc.entries[0]!.modtime = "yesterday";
    },
    says: /"yesterday" is no time/,
  },
  {
    name: "an xattr that is not base64",
    change: ({ toc }) => {
      toc.entries[1]!.xattrs = { a: "%" };
    },
    says: /is not base64/,
  },
  {
    name: "an offset behind the data",
    change: ({ toc }) => {
      toc.entries[1]!.endOffset = 101;
    },
    says: /offset of "d\/f".*is not in the blob's 0\.\.100/,
  },
  {
    name: "an empty range",
    change: ({ toc }) => {
      toc.entries[1]!.endOffset = 10;
    },
    says: /offset of "d\/f".*10\.\.10/,
  },
  {
    name: "a chunk of no file",
    change: ({ toc }) => void toc.entries.unshift({ type: "chunk", name: "d/f", chunkSize: 1 }),
    says: /a chunk comes before every file/,
  },
  {
    name: "a chunk of another file",
    change: ({ toc }) =>
      void toc.entries.push({
        type: "chunk",
        name: "d/g",
        chunkOffset: 9,
        chunkSize: 9,
        offset: 20,
        chunkDigest: DIGEST,
      }),
    says: /name of "d\/g".*differs from that of the file ahead/,
  },
  {
    name: "a chunk of a file without content",
    change: ({ toc }) => void toc.entries.splice(1, 0, { type: "chunk", name: "d/", chunkSize: 1, offset: 1 }),
    says: /chunks of "d\/".*without content/,
  },
  {
    name: "a gap between chunks",
    change: ({ toc }) => {
      Object.assign(toc.entries[1]!, { chunkSize: 5, chunkDigest: DIGEST });
      toc.entries.push({ type: "chunk", name: "d/f", chunkOffset: 6, chunkSize: 12, offset: 30, chunkDigest: DIGEST });
    },
    says: /chunk of "d\/f".*of 12 bytes at 6 does not follow at 5 of 18/,
  },
  {
    name: "chunks longer than the file",
    change: ({ toc }) => {
      Object.assign(toc.entries[1]!, { chunkSize: 5, chunkDigest: DIGEST });
      toc.entries.push({ type: "chunk", name: "d/f", chunkOffset: 5, chunkSize: 14, offset: 30, chunkDigest: DIGEST });
    },
    says: /chunk of "d\/f".*of 14 bytes at 5/,
  },
  {
    name: "chunks that are less than the file",
    change: ({ toc }) => void Object.assign(toc.entries[1]!, { chunkSize: 5, chunkDigest: DIGEST }),
    says: /chunks of "d\/f".*have 5 bytes, the file has 18/,
  },
  {
    name: "the same bytes for two files",
    change: ({ toc }) => void toc.entries.push({ ...toc.entries[1]!, name: "d/g" }),
    says: /offset of "d\/g".*is not in the blob's 60\.\.100/,
  },
  {
    name: "an entry that the tar does not have",
    change: ({ toc }) => void toc.entries.push({ type: "dir", name: "e" }),
    says: /entry of "e".*is not in the tar-split/,
  },
  {
    name: "an entry too few",
    change: ({ toc }) => void toc.entries.pop(),
    says: /entry of "d\/f".*is missing in the TOC/,
  },
  {
    name: "entries in another order",
    change: ({ toc }) => void toc.entries.reverse(),
    says: /differs from the TOC: name is "d\/f" in the TOC, "d\/" in the tar/,
  },
  {
    name: "another mode",
    change: ({ toc }) => {
      toc.entries[1]!.mode = 0o755;
    },
    says: /mode is 493 in the TOC, 2541 in the tar/,
  },
  {
    name: "another owner",
    change: ({ toc }) => {
      toc.entries[1]!.uid = 0;
    },
    says: /uid is 0 in the TOC, 5 in the tar/,
  },
  {
    name: "another group",
    change: ({ toc }) => {
      toc.entries[0]!.gid = 7;
    },
    says: /gid is 7 in the TOC/,
  },
  {
    name: "another time",
    change: ({ toc }) => {
      toc.entries[0]!.modtime = "1970-01-01T00:00:01Z";
    },
    says: /mtime is 1 in the TOC/,
  },
  {
    name: "nanoseconds",
    change: ({ toc }) => {
      toc.entries[0]!.modtime = "1970-01-01T00:00:00.5Z";
    },
    says: /nanoseconds is 500000000 in the TOC/,
  },
  {
    name: "another type",
    change: ({ toc }) => {
      toc.entries[0]!.type = "fifo";
    },
    says: /type is fifo in the TOC, directory in the tar/,
  },
  {
    name: "another xattr",
    change: ({ toc }) => {
      toc.entries[1]!.xattrs = { "user.a": "dw==" };
    },
    says: /xattr "user\.a" is not the same/,
  },
  {
    name: "an xattr more",
    change: ({ toc }) => {
      toc.entries[1]!.xattrs = { "user.a": "dg==", b: "" };
    },
    says: /number of xattrs is 2/,
  },
  {
    name: "a header without its item",
    change: ({ lines }) => void lines.splice(1, 1),
    says: /content of "d\/".*has no item of its own/,
  },
  {
    name: "an item without a header",
    change: ({ lines }) => void lines.shift(),
    says: /item of "d\/".*has no header before it/,
  },
  {
    name: "an item of another size",
    change: ({ lines }) => {
      lines[3] = lines[3]!.replace('"size":18', '"size":17');
    },
    says: /has 17 bytes, the header says 18/,
  },
  {
    name: "an item of another name",
    change: ({ lines }) => {
      lines[3] = lines[3]!.replace("d/f", "d/g");
    },
    says: /item of "d\/f".*is named "d\/g"/,
  },
  {
    name: "content among the headers",
    change: ({ lines }) => {
      lines[2] = new TarSplitEncoder().bytes(Buffer.concat([headerOf("d/f"), CONTENT]));
    },
    says: /stands among the headers/,
  },
  {
    name: "bytes where content is due",
    change: ({ lines }) => void lines.splice(3, 1),
    says: /content of "d\/f".*is followed by bytes, before its item/,
  },
  { name: "an end in the middle", change: ({ lines }) => void lines.splice(3), says: /content of "d\/f".*has no item/ },
  { name: "no end of archive and no padding", change: ({ lines }) => void lines.splice(4), says: /padding/ },
  {
    name: "a type of item",
    change: ({ lines }) => {
      lines[0] = `{"type":3}\n`;
    },
    says: /type.*is neither 1 nor 2/,
  },
  {
    name: "bytes that are not base64",
    change: ({ lines }) => {
      lines[0] = `{"type":2,"payload":"%"}\n`;
    },
    says: /payload.*is not base64/,
  },
  {
    name: "a tar-split that is no JSON",
    change: ({ lines }) => {
      lines[0] = `{"type":2,}\n`;
    },
    says: /is not JSON/,
  },
  {
    name: "a tar-split of numbers",
    change: ({ lines }) => {
      lines[0] = "5\n";
    },
    says: /is no sequence of objects/,
  },
  {
    name: "a tar-split that is cut",
    change: ({ lines }) => {
      lines[4] = lines[4]!.slice(0, 20);
    },
    says: /ends inside of a value/,
  },
];

function headerOf(path: string): Uint8Array {
  return encodeTarHeader(
    header({ path, size: CONTENT.length, mode: 0o4755, uid: 5, xattrs: [{ name: "user.a", value: "v" }] }),
  );
}

describe("LayerToc", () => {
  test("replays the layer that the cases below change", async () => {
    const { toc, lines } = sound();
    assert.equal(await play({ toc, tarSplit: lines.join("") }), 1);
  });

  for (const { name, change, says } of HOSTILE) {
    test(`refuses ${name}`, async () => {
      const layer = sound();
      change(layer);
      const made = { toc: layer.toc, tarSplit: layer.lines.join("") };
      await assert.rejects(play(made), { name: "FormatError", message: says });
    });
  }

  const DOCUMENTS: readonly (readonly [string, string, RegExp])[] = [
    ["an empty document", " ", /ends too early/],
    ["a list", "[]", /no document here/],
    ["a document without entries", `{"version":1}`, /entries at byte 13: is missing/],
    ["entries twice", `{"version":1,"entries":[],"entries":[]}`, /entries.*comes twice/],
    ["a member twice", `{"version":1,"version":1,"entries":[]}`, /"version".*comes twice/],
    ["entries that are an object", `{"version":1,"entries":{}}`, /entries.*is no list/],
    ["an entry that is a list", `{"version":1,"entries":[[]]}`, /no element or end here/],
    ["a comma too many", `{"version":1,"entries":[{"type":"dir","name":"d/"},]}`, /no element here/],
    ["text behind the document", `{"version":1,"entries":[]} x`, /no end here/],
    ["a document that is cut", `{"version":1,"entries":[`, /ends too early/],
    ["bytes that are not UTF-8", `{"version":1,"entries":[],"x":"\xff"}`, /./],
    ["deep nesting", `{"version":1,"entries":[],"x":${"[".repeat(100)}${"]".repeat(100)}}`, /nests deeper than 32/],
    [
      "no digest of the tar-split",
      `{"version":1,"entries":[{"type":"dir","name":"d/"}]}`,
      /tarSplitDigest.*is missing/,
    ],
  ];
  for (const [name, toc, says] of DOCUMENTS) {
    test(`refuses ${name}`, async () => {
      await assert.rejects(play({ toc, tarSplit: sound().lines.join("") }), { name: "FormatError", message: says });
    });
  }

  test("refuses an entry over its limit without taking it", async () => {
    const { toc, lines } = sound();
    toc.entries[0]!.x = "x".repeat(5000);
    const limits = { entrySize: 1000 };
    await assert.rejects(open({ toc, tarSplit: lines.join("") }, limits), { code: "RESOURCE_EXHAUSTED" });
  });

  test("refuses a file of more chunks than the limit", async () => {
    const { toc, lines } = sound();
    Object.assign(toc.entries[1]!, { chunkSize: 1, chunkDigest: DIGEST });
    for (let i = 1; i < 18; i++) {
      toc.entries.push({
        type: "chunk",
        name: "d/f",
        chunkOffset: i,
        chunkSize: 1,
        offset: 10 + i,
        chunkDigest: DIGEST,
      });
    }
    const [opened] = await open({ toc, tarSplit: lines.join("") });
    assert.equal(opened.summary.chunks, 18);
    const limits = { chunksPerFile: 17 };
    await assert.rejects(open({ toc, tarSplit: lines.join("") }, limits), { code: "RESOURCE_EXHAUSTED" });
  });

  test("tells where a chunk ends by the next one, and the last by the file", async () => {
    const { toc, lines } = sound();
    Object.assign(toc.entries[1]!, { chunkSize: 5, chunkDigest: DIGEST });
    toc.entries.push({
      type: "chunk",
      name: "d/f",
      chunkOffset: 5,
      chunkSize: 13,
      offset: 30,
      chunkDigest: DIGEST,
      chunkType: "zeros",
    });
    const [opened] = await open({ toc, tarSplit: lines.join("") });
    const entries = await Array.fromAsync(opened.entries());
    assert.deepEqual(
      entries[1]!.chunks.map(({ blobOffset, blobEnd, fileOffset, size, zeros }) => [
        blobOffset,
        blobEnd,
        fileOffset,
        size,
        zeros,
      ]),
      [
        [10, 30, 0, 5, false],
        [30, 60, 5, 13, true],
      ],
    );
  });

  test("stops when the signal is aborted", async () => {
    const { toc, lines } = sound();
    const [opened] = await open({ toc, tarSplit: lines.join("") });
    const signal = AbortSignal.abort();
    await assert.rejects(Array.fromAsync(opened.entries({ signal })), { code: "CANCELLED" });
  });

  test("takes a name that is not UTF-8 for its likeness in the TOC", async () => {
    const { toc, lines } = sound();
    const encoder = new TarSplitEncoder();
    const raw = Buffer.from([0x64, 0x2f, 0xff, 0xfe]);
    lines[0] = encoder.bytes(encodeTarHeader(header({ path: raw.toString("latin1"), type: "directory" })));
    lines[1] = `{"type":1,"name_raw":"${Buffer.concat([raw, Buffer.from("/")]).toString("base64")}","payload":null,"position":1}\n`;
    toc.entries[0]!.name = "d/\ufffd\ufffd/";
    const [opened, blob] = await open({
      toc: { ...toc, entries: [toc.entries[0]!] },
      tarSplit: [...lines.slice(0, 2), encoder.bytes(TAR_END)].join(""),
    });
    const { entries } = await replay(opened, blob);
    assert.equal(entries[0]!.path, "d/\xff\xfe/");
  });

  test("has limits for everything", () => {
    assert.ok(Object.values(DEFAULT_TOC_LIMITS).every((limit) => limit > 0 && Number.isSafeInteger(limit)));
  });
});
