/** Names of images in the store, as references that other tools understand. */
import { ShaleError } from "../errors/index.ts";
import { isDigest, parseReference, type Reference } from "../oci/index.ts";

/** The reference that `text` is; undefined when it is none: the name of an image from a layout or archive without names. */
export function findReference(text: string): Reference | undefined {
  if (isDigest(text)) return undefined; // "sha256:..." would be read as a tag of docker.io/library/sha256
  try {
    return parseReference(text);
  } catch (error) {
    if (ShaleError.is(error)) return undefined; // FormatError of any code: it is no reference
    throw error;
  }
}

/** A reference by its tag alone: a digest names bytes that may leave the store in another form. Undefined without a tag. */
export function findTagged(text: string): (Reference & { readonly tag: string }) | undefined {
  const reference = findReference(text);
  if (reference?.tag === undefined) return undefined;
  const { host, repository, tag } = reference;
  return { host, repository, tag };
}
