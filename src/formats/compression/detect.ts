/** Which compression a stream has, told by its first bytes and never by a media type. */

export type Compression = "none" | "gzip" | "zstd";

/**
 * The compression that `head` begins with; 4 bytes are enough. Anything unknown, or shorter, is "none": what it really is
 * shows when it is read as a tar. No tar can be mistaken: the first byte of a tar is that of a name or zero, and a name
 * that begins with one of these sequences would have to contain control characters.
 */
export function detectCompression(head: Uint8Array): Compression {
  // RFC 1952, 2.3.1: ID1, ID2; CM is checked by the decoder
  if (head.length >= 2 && head[0] === 0x1f && head[1] === 0x8b) return "gzip";
  if (head.length >= 4) {
    // RFC 8878, 3.1.1: 0xFD2FB528; 3.1.2: a skippable frame, 0x184D2A50..5F (zstd:chunked and pzstd may begin with one)
    if (head[0] === 0x28 && head[1] === 0xb5 && head[2] === 0x2f && head[3] === 0xfd) return "zstd";
    if ((head[0]! & 0xf0) === 0x50 && head[1] === 0x2a && head[2] === 0x4d && head[3] === 0x18) return "zstd";
  }
  return "none";
}

/** For messages: "Cannot read gzip stream: ...". */
export function compressionName(compression: Compression): string {
  return compression === "none" ? "stream" : `${compression} stream`;
}
