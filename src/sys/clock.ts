/** Time of the wall clock. */
import { wallClock } from "./libc.ts";

/** Nanoseconds since 1970, as precise as the kernel's clock; follows the clock when that is set, back as well. */
export function wallClockNs(): bigint {
  return wallClock();
}
