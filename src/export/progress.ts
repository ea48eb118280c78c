/** Told about each step of an export once, then about its bytes; both are cheap and never throw. */
export interface ExportProgress {
  /** `total` is in bytes; 0 for a step that has none. */
  readonly step: (name: string, total: number) => void;
  readonly advance: (bytes: number) => void;
}
