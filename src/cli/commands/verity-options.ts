/** Options of dm-verity that several commands share. */
import type { OptionTable } from "../command.ts";

export const VERITY = {
  salt: {
    type: "string",
    value: "HEX",
    completes: "none",
    help: "Salt of the hashes, - for none",
  },
  uuid: { type: "string", value: "UUID", completes: "none", help: "Instead of one derived from the content's digest" },
  "no-superblock": {
    type: "flag",
    help: "The bare form of the tree, as nydus and Kata have it: no superblock",
  },
  jobs: {
    type: "number",
    short: "j",
    value: "N",
    minimum: 1,
    maximum: 256,
    help: "Threads that hash, instead of one per processor",
  },
} as const satisfies OptionTable;
