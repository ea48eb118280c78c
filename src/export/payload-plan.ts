/**
 * Where payloads go in an exported image: each once, in the order of the tree. How the store happens to keep them (in which
 * blob, shared with which image) must not show, so that the same image gives the same bytes on every machine.
 */
import { alignUp } from "../bytes/index.ts";
import { ShaleError } from "../errors/index.ts";
import { Content, type LayerIndex } from "../formats/layer-index/index.ts";
import { DIGEST_LENGTH, decodePayloads, PAYLOAD_ALIGNMENT, PayloadTable } from "../formats/payload-table/index.ts";
import type { OpenSource } from "./source.ts";

/** Bytes that follow one another in a blob and in the export. Offsets and length are multiples of 4096. */
export interface CopyRun {
  readonly device: number;
  readonly from: number;
  /** From the start of the payload area. */
  readonly to: number;
  readonly length: number;
}

export interface PayloadPlan {
  readonly runs: readonly CopyRun[];
  /** Bytes of the payload area, a multiple of 4096. */
  readonly size: number;
}

/**
 * Moves every EXTENT of `index` to its place on one device, the payload area, and says what to copy there. DATA_LOSS when a
 * blob's own table does not know a payload.
 */
export function planPayloads(index: LayerIndex, source: OpenSource): PayloadPlan {
  const digests = readDigests(index, source);
  const placed = new PayloadTable();
  const runs: CopyRun[] = [];
  let size = 0;
  for (let inode = 0; inode < index.inodeCount; inode++) {
    if (index.contentKind(inode) !== Content.EXTENT) continue;
    const length = index.size(inode);
    const digest = digests.subarray(inode * DIGEST_LENGTH, (inode + 1) * DIGEST_LENGTH);
    let to = placed.find(digest, length);
    if (to < 0) {
      to = size;
      placed.add(to, length, digest);
      const padded = alignUp(length, PAYLOAD_ALIGNMENT);
      addRun(runs, { device: index.contentDevice(inode), from: index.contentOffset(inode), to, length: padded });
      size += padded;
    }
    index.setContent(inode, Content.EXTENT, 0, to);
  }
  return { runs, size };
}

function addRun(runs: CopyRun[], run: CopyRun): void {
  const last = runs.at(-1);
  if (last?.device === run.device && last.from + last.length === run.from) {
    runs[runs.length - 1] = { ...last, length: last.length + run.length };
  } else runs.push(run);
}

/** By inode: the digest of its payload, from the tables of the blobs, each read once from start to end. */
function readDigests(index: LayerIndex, { devices, files }: OpenSource): Buffer {
  const digests = Buffer.alloc(index.inodeCount * DIGEST_LENGTH);
  const inodes: number[][] = devices.map(() => []);
  for (let inode = 0; inode < index.inodeCount; inode++) {
    if (index.contentKind(inode) === Content.EXTENT) inodes[index.contentDevice(inode)]!.push(inode);
  }
  devices.forEach((device, number) => {
    const wanted = Uint32Array.from(inodes[number]!).sort((a, b) => index.contentOffset(a) - index.contentOffset(b));
    const payloads = decodePayloads(device);
    let payload = payloads.next();
    for (const inode of wanted) {
      const offset = index.contentOffset(inode);
      while (payload.done !== true && payload.value.offset < offset) payload = payloads.next();
      if (payload.done === true || payload.value.offset !== offset || payload.value.length !== index.size(inode)) {
        throw new ShaleError(
          "DATA_LOSS",
          `Cannot export: blob ${files.devices[number]} has no payload of ${index.size(inode)} bytes at ${offset}`,
          { hint: "Run shale check --repair" },
        );
      }
      digests.set(payload.value.digest, inode * DIGEST_LENGTH);
    }
    while (payload.done !== true) payload = payloads.next(); // the table's checksum is at its end
  });
  return digests;
}
