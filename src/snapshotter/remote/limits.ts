/** Limits of fetching for containerd; docs/limits.md lists them. */

export interface RemoteLimits {
  /** Images fetched at a time, each for any number of Prepare calls. */
  readonly images: number;
  /** Layers fetched at a time, of all images together. */
  readonly layers: number;
  /** Layers of one image fetched at a time. */
  readonly layersOfImage: number;
  /** Compressed bytes of the layers fetched at a time; a larger layer is fetched alone. */
  readonly bytesInFlight: number;
}

export const DEFAULT_REMOTE_LIMITS: RemoteLimits = {
  images: 16,
  layers: 16,
  layersOfImage: 6,
  bytesInFlight: 8 * 2 ** 30,
};

/** containerd allows 4096 for key and value together; nothing that comes straight to the socket may be larger. */
export const MAX_LABEL_LENGTH = 4096;
/** How long a fetch that nobody asks for any more goes on, and its lease keeps what it brought. */
export const LINGER_MS = 60_000;
/** How long an image whose manifest could not be fetched is left to containerd without being asked for again. */
export const GIVE_UP_MS = 15_000;
