/** One thread of {@link FrameThreads}: compresses one batch after the other. */
import { parentPort } from "node:worker_threads";
import { compressFrames, type FrameBatch, type FrameSettings } from "../formats/compression/index.ts";

export interface FrameJob extends FrameBatch {
  readonly settings: FrameSettings;
}

export interface FrameAnswer extends FrameBatch {
  readonly spare: Uint8Array;
}

parentPort!.on("message", ({ settings, ...batch }: FrameJob) => {
  const { bytes, lengths } = compressFrames(batch, settings);
  // unpooled, since its memory goes to the other thread
  const own = bytes.byteLength === bytes.buffer.byteLength ? bytes : new Uint8Array(bytes);
  const answer: FrameAnswer = { bytes: own, lengths, spare: batch.bytes };
  parentPort!.postMessage(answer, [own.buffer as ArrayBuffer, batch.bytes.buffer as ArrayBuffer]);
});
