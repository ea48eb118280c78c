import type { DiffId, Digest } from "../../oci/index.ts";

/** What fetching for containerd does, for logs and metrics. No secrets. */
export type RemoteEvent =
  /** A layer is in the store. "known": found without asking a registry. */
  | {
      readonly kind: "layer";
      readonly image: string;
      readonly digest: Digest | undefined;
      readonly diffId: DiffId;
      readonly state: "known" | "present" | "shared" | "fetched";
      /** Bytes that came from the registry for it. */
      readonly received: number;
      readonly durationMs: number;
    }
  /** An image (without `digest`: its manifest) or one of its layers could not be fetched. */
  | { readonly kind: "failed"; readonly image: string; readonly digest: Digest | undefined; readonly error: unknown }
  /** A Prepare was left to containerd, and why. */
  | { readonly kind: "left"; readonly chainId: string; readonly error: unknown };
