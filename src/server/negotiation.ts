/**
 * Accept and entity tags, as far as a registry needs them. Pure. RFC 9110 12.5.1, 13.1.2 and 13.1.5.
 */

/** Whether `mediaType` may be sent to a client with this Accept header; a missing header accepts everything. */
export function accepts(header: string | undefined, mediaType: string): boolean {
  if (header === undefined || header.trim() === "") return true;
  const wanted = mediaType.toLowerCase();
  const group = `${wanted.slice(0, wanted.indexOf("/"))}/*`;
  // The most specific range that matches decides; its weight may be 0, which means "not this one".
  let best = -1;
  let weight = 0;
  for (const item of header.toLowerCase().split(",")) {
    const [range = "", ...parameters] = item.split(";").map((part) => part.trim());
    const specificity = range === wanted ? 2 : range === group ? 1 : range === "*/*" ? 0 : -1;
    if (specificity < 0 || specificity < best) continue;
    const q = parameters.find((parameter) => parameter.startsWith("q="));
    const given = q === undefined ? 1 : Number(q.slice(2));
    weight = specificity > best ? given : Math.max(weight, given);
    best = specificity;
  }
  return best >= 0 && weight > 0;
}

/** A strong entity tag; a digest has no character that would need quoting. */
export function entityTag(digest: string): string {
  return `"${digest}"`;
}

/** If-None-Match: weak comparison, `*` matches whatever exists. */
export function matchesNone(header: string | undefined, tag: string): boolean {
  if (header === undefined) return false;
  return header.split(",").some((item) => {
    const one = item.trim();
    return one === "*" || one.replace(/^W\//, "") === tag;
  });
}

/** If-Range: a Range counts when the header is missing or is exactly this strong tag; a date never equals it. */
export function rangeApplies(header: string | undefined, tag: string): boolean {
  return header === undefined || header.trim() === tag;
}
