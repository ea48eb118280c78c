/** containerd's diff service: Apply is the differ's; Diff is left to containerd's own differ (docs/adr/0015). */
import { ShaleError } from "../../errors/index.ts";
import type { Handlers } from "../../rpc/index.ts";
import type { Differ } from "../differ/index.ts";
import type { DiffMethods } from "./messages.ts";

export function diffService(differ: Differ): Handlers<DiffMethods> {
  return {
    async Apply(request, call) {
      return { applied: await differ.apply(request, call) };
    },
    Diff() {
      throw new ShaleError(
        "UNIMPLEMENTED",
        "Cannot compare snapshots: shale leaves that to the next differ of the list",
        {
          hint: 'Keep "walking" in the diff service\'s list',
        },
      );
    },
  };
}
