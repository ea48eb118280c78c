/**
 * tar: a streaming decoder for all dialects that image layers come in, and an encoder.
 *
 * Guarantees: every byte of the tar reaches the sink exactly once and in order, as `raw` or as `payload`, so that the
 * tar can be rebuilt bit for bit; the result does not depend on how the input was cut into chunks; memory is bounded by
 * `TarLimits`, not by the tar; any input either decodes or throws a FormatError that names the entry and its offset.
 * Never normalises a path and never decides what an entry means for a layer: `layer-index/builder.ts` does.
 *
 * Specifications: POSIX.1-2017 pax (ustar and pax formats), GNU tar manual "Tar Internals", star(5), tar(5) of
 * libarchive. Where readers differ, the meaning is that of Go's archive/tar, with which containerd and podman unpack;
 * a tar that would be cut into different entries by different readers is refused.
 *
 * | input | meaning |
 * |---|---|
 * | v7, ustar, star, GNU headers | by magic; prefix only in ustar and star; GNU's atime and ctime are ignored |
 * | checksum | of unsigned or signed bytes |
 * | numbers | octal or base-256; owner, size and device may not be negative, mtime may |
 * | mode | permission bits; file type bits that some writers add are ignored, except that a socket is refused |
 * | type NUL, 0, 7 | regular file; with a slash at the end of its name a directory, which must have no data |
 * | types 1 to 6 | never have data: the size field is ignored |
 * | GNU L and K | long name and long link name; a PAX path beside them must be the same |
 * | PAX x (Solaris X) | path, linkpath, size, uid, gid, mtime, SCHILY.xattr, LIBARCHIVE.xattr, SCHILY.devmajor/devminor, GNU.sparse; an empty value takes an earlier record back; other keys are ignored, those that lose something named in `ignoredRecords` |
 * | PAX g | mtime, uid and gid hold for all entries that follow; path, size, xattrs and sparse maps are refused in it |
 * | two headers of one kind before an entry | refused |
 * | sparse | old GNU (S), PAX 0.0, 0.1 and 1.0; segments ascend, end within the file and add up to what is stored; star's own form is refused |
 * | GNU D | a directory; its list of names goes to `raw` |
 * | GNU V | a label: goes to `raw`, no entry |
 * | GNU M and N, Solaris A and E, unknown types | refused |
 * | end | two zero blocks, one at the end of the stream, or the end of the stream after an entry and its padding (or within that, with `mayLackPadding`); an empty stream is an empty archive; zeros may follow two zero blocks, anything else is refused |
 */
export { TarDecoder } from "./decoder.ts";
export { encodeTarHeader, TAR_END, type TarPlace, tarHeaderLength, tarPadding } from "./encoder.ts";
export {
  type Segment,
  type TarEntry,
  type TarEntryType,
  type TarHeader,
  type TarSink,
  type TarUnkept,
  tarError,
} from "./entry.ts";
export { startsWithHeader } from "./header.ts";
export { type TarInput, TarReader } from "./reader.ts";
export { DEFAULT_TAR_LIMITS, type TarLimits } from "./limits.ts";
