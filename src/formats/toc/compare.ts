/** Whether a TOC's entry and the tar's header tell the same of a file. */
import { type ByteString, displayBytes } from "../../bytes/index.ts";
import type { TarEntry, TarHeader } from "../tar/index.ts";

/**
 * The first field that differs, with both values; undefined when the two agree. A name that is not UTF-8 stands in the TOC
 * with replacement characters, as Go writes it, and is compared so. Access and change times are not: a layer has no place
 * for them.
 */
export function differenceOf(toc: TarHeader, tar: TarEntry): string | undefined {
  const numbers: readonly (readonly [string, number, number])[] = [
    ["mode", toc.mode, tar.mode],
    ["uid", toc.uid, tar.uid],
    ["gid", toc.gid, tar.gid],
    ["size", toc.size, tar.size],
    ["mtime", toc.mtimeSeconds, tar.mtimeSeconds],
    ["mtime nanoseconds", toc.mtimeNanoseconds, tar.mtimeNanoseconds],
    ["major device number", toc.rdevMajor, tar.rdevMajor],
    ["minor device number", toc.rdevMinor, tar.rdevMinor],
  ];
  const told = (field: string, a: string, b: string) => `${field} is ${a} in the TOC, ${b} in the tar`;
  if (!sameText(toc.path, tar.path)) return told("name", shown(toc.path), shown(tar.path));
  if (toc.type !== tar.type) return told("type", toc.type, tar.type);
  if (!sameText(toc.linkTarget, tar.linkTarget)) return told("link name", shown(toc.linkTarget), shown(tar.linkTarget));
  for (const [field, a, b] of numbers) if (a !== b) return told(field, `${a}`, `${b}`);
  if (toc.xattrs.length !== tar.xattrs.length) {
    return told("number of xattrs", `${toc.xattrs.length}`, `${tar.xattrs.length}`);
  }
  for (const { name, value } of toc.xattrs) {
    if (!tar.xattrs.some((xattr) => sameText(name, xattr.name) && xattr.value === value)) {
      return `xattr ${shown(name)} is not the same in TOC and tar`;
    }
  }
  return undefined;
}

function sameText(toc: ByteString, tar: ByteString): boolean {
  return toc === tar || (tar !== "" && toc.includes("\xef\xbf\xbd") && replaced(toc) === replaced(tar));
}

/** Decoders differ in how many replacement characters a bad sequence gives: runs of them count as one. */
function replaced(text: ByteString): string {
  return Buffer.from(text, "latin1")
    .toString("utf8")
    .replace(/\ufffd+/g, "\ufffd");
}

function shown(text: ByteString): string {
  return `"${displayBytes(text.slice(0, 200))}"`;
}
