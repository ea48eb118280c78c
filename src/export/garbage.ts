/** Garbage of everything below a store's directory: of the store itself, of mounts that are gone, and of cached exports. */
import { pruneMounts } from "../images/mount.ts";
import type { GarbageItem, GarbageReport, Store } from "../store/index.ts";
import { collectExports } from "./entries.ts";

/** Collects after dropping mounts that are gone, which only a reboot or a killed process leaves behind. */
export async function collectAll(
  store: Store,
  options: { readonly dryRun?: boolean; readonly signal?: AbortSignal } = {},
): Promise<GarbageReport> {
  using operation = store.begin("gc");
  const dryRun = options.dryRun ?? false;
  if (!dryRun) await pruneMounts(store, operation, options.signal);
  const report = operation.collectGarbage(options);
  // Those that wait for older operations are out of sight as well.
  const dying = new Set([...report.items, ...report.postponed].flatMap(({ layerId }) => layerId ?? []));
  const exports = collectExports(store, { dryRun, dying }).map(({ id, allocated, why }): GarbageItem => {
    return { kind: "export", id, size: allocated, why };
  });
  const freed = exports.reduce((sum, { size }) => sum + size, report.freed);
  return { ...report, items: [...report.items, ...exports], freed };
}
