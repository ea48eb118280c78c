/**
 * CRIU images: the fields that shale shows of a checkpointed process tree, and where its memory is.
 *
 * Guarantees: any bytes decode or throw a FormatError that names the file; what is not known is passed over, so that images
 * of newer CRIU versions read; memory is bounded by `limits.ts`. Pure. Never writes images.
 *
 * Specifications: checkpoint-restore/criu images/*.proto, criu/include/magic.h, criu/image.c, criu/pagemap.c.
 */
export { decodeImage, decodeSingle, detectImage, type ImageKind } from "./images.ts";
export { LIMITS as CRIU_LIMITS } from "./limits.ts";
export { CORE, FILE, INVENTORY, MACHINES, MM, PSTREE, STATS, TASK_STATES, UTSNS } from "./messages.ts";
export { decodePagemap, locateMemory, type MemoryRun, PAGE_SIZE, type Pagemap } from "./pagemap.ts";
export { type ProcessTree, type Process, ProcessTreeReader } from "./processes.ts";
