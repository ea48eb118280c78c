/**
 * The recipe of a tar, `tar.headers`: every byte of a layer's tar that is not payload, in order, and which file of the
 * layer's EROFS image each payload is. With that image the tar comes back bit for bit.
 *
 * ```
 * header, 16 bytes                     magic, version
 * op blocks                            zstd frames of at most 256 KiB of ops each
 * nid blocks                           zstd frames of 65536 nids each, the last with the rest
 * directory: records of 32 bytes       one for each op block, then one for each nid block; see RECORD
 * footer, 64 bytes                     see FOOTER; its CRC-32 covers directory and footer
 * ```
 *
 * Little-endian. An op block is a sequence of ops; no op continues in the next block:
 *
 * | byte | then | meaning |
 * |---|---|---|
 * | 0 | varint n, n bytes | these bytes |
 * | 1 | varint n | bytes 0 to n of the next payload |
 * | 2 | varint n, n times (varint gap, varint length) | segments of the next payload, each `gap` after the end of the one before |
 *
 * A varint is LEB128, below 2^53. Each op 1 or 2 takes the next entry of the nid list, the EROFS nid of its file. The nid
 * list is apart from the ops because nids are only known after the image was written, which is after the tar was read. A nid
 * block holds zigzag varints of the differences, the first one from 0.
 *
 * Guarantees: the writer gives the same bytes for the same calls and holds one block, 4 bytes a payload and 32 bytes a
 * block. The reader checks the directory when it is made and each block's CRC-32 before it is decompressed; damaged or
 * hostile bytes are a FormatError, allocations are bounded by the block limits and the size of the file. A tar can be
 * rebuilt from any offset at the cost of one block. Pure.
 */
export { RecipeReader, type RecipePayload, type ReadPayload } from "./reader.ts";
export { RecipeWriter, type RecipeSegment } from "./writer.ts";
