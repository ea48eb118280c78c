/** What the writers of zstd:chunked and eStargz blobs share; the door for them, as index.ts is for readers. */
export { Crc64 } from "./crc64.ts";
export { DocumentWriter } from "./document-writer.ts";
export { type FrameMark, FrameStream } from "./frame-stream.ts";
export { goString, rfc3339, sha256Text, utf8Of } from "./json-text.ts";
export { ESTARGZ_LANDMARKS, ESTARGZ_TOC_NAME } from "./estargz-toc.ts";
export {
  encodeEstargzFooter,
  SKIPPABLE_HEADER_SIZE,
  ZSTD_FOOTER,
  ZSTD_FOOTER_FRAME,
  ZSTD_FOOTER_MAGIC,
  ZSTD_FOOTER_SIZE,
  ZSTD_TOC_TYPE,
} from "./location.ts";
export { NotConvertibleError } from "./not-convertible.ts";
export { PathSet } from "./path-set.ts";
export { memorySpool, type Spool } from "./spool.ts";
export { TarSplitEncoder } from "./tar-split.ts";
