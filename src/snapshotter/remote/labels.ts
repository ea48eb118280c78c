/**
 * What the labels of a Prepare say about the layer that is wanted. Two families are understood: that of containerd's CRI
 * plugin and transfer service (containerd pkg/snapshotters/annotations.go; nydus reads the same), and that of
 * stargz-snapshotter's clients and BuildKit (stargz-snapshotter fs/source/source.go).
 *
 * Labels are hints where to look, never what is right: what is found has to make the chain id that containerd names.
 */
import { FormatError } from "../../errors/index.ts";
import { type Digest, parseDigest, parseReference, type Reference } from "../../oci/index.ts";
import type { Labels } from "../types.ts";
import { MAX_LABEL_LENGTH } from "./limits.ts";

export interface WantedLayer {
  readonly reference: Reference;
  /** Of the image's manifest for this platform; without it the reference's tag is resolved again. */
  readonly manifest: Digest | undefined;
  /** Of the blob as the registry has it. */
  readonly layer: Digest | undefined;
  /** Of this layer and those above it; may be cut short, the whole list didn't fit into a label. */
  readonly layers: readonly Digest[];
}

interface Family {
  readonly reference: string;
  readonly manifest?: string;
  readonly layer: string;
  readonly layers: string;
}

const FAMILIES: readonly Family[] = [
  {
    reference: "containerd.io/snapshot/cri.image-ref",
    manifest: "containerd.io/snapshot/cri.manifest-digest",
    layer: "containerd.io/snapshot/cri.layer-digest",
    layers: "containerd.io/snapshot/cri.image-layers",
  },
  {
    reference: "containerd.io/snapshot/remote/stargz.reference",
    layer: "containerd.io/snapshot/remote/stargz.digest",
    layers: "containerd.io/snapshot/remote/stargz.layers",
  },
];

/** Undefined when no image reference is among the labels; FormatError, naming the label, when one can't be meant. */
export function readLabels(labels: Labels): WantedLayer | undefined {
  const family = FAMILIES.find(({ reference }) => hasText(labels, reference));
  if (family === undefined) return undefined;
  const digest = (label: string | undefined) => {
    const text = label === undefined ? "" : textOf(labels, label);
    return text === "" ? undefined : parseDigest(text, "label", label);
  };
  return {
    reference: parseReference(textOf(labels, family.reference)),
    manifest: digest(family.manifest),
    layer: digest(family.layer),
    layers: textOf(labels, family.layers)
      .split(",")
      .filter((part) => part !== "") // BuildKit ends its list with a comma
      .map((part) => parseDigest(part, "label", family.layers)),
  };
}

function hasText(labels: Labels, label: string): boolean {
  return Object.hasOwn(labels, label) && labels[label] !== "";
}

function textOf(labels: Labels, label: string): string {
  const text = Object.hasOwn(labels, label) ? labels[label]! : "";
  if (text.length <= MAX_LABEL_LENGTH) return text;
  throw new FormatError("label", label, `has ${text.length} characters, the limit is ${MAX_LABEL_LENGTH}`, {
    code: "RESOURCE_EXHAUSTED",
  });
}
