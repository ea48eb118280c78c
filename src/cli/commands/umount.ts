import { singleLine } from "../../log/index.ts";
import { emit } from "../output.ts";
import { openStore } from "./store-access.ts";
import { requireMountRight } from "./mount.ts";
import { defineCommand } from "../command.ts";

export const umount = defineCommand({
  name: "umount",
  summary: "Unmount images",
  description: `
Unmounts what \`shale mount\` mounted at each DIR and lets its image go. For a writable mount its changes are removed too,
unless --keep-upper is given. Unmounting where nothing is mounted is success.
`,
  arguments: [{ name: "DIR", help: "Directory that an image is mounted at", repeated: true, completes: "directory" }],
  options: {
    lazy: { type: "flag", short: "l", help: "Detach now, and let go once nothing uses it any more" },
    "keep-upper": { type: "flag", help: "Keep the changes of a writable mount, and print where they are" },
  },
  examples: [
    { command: "shale umount /mnt/python", help: "One" },
    { command: "shale umount --lazy /mnt/a /mnt/b", help: "Several, though a process still uses them" },
  ],
  async run(context) {
    const { values, positionals, signal } = context;
    const { unmountImage } = await import("../../images/mount.ts");
    await using store = await openStore(context);
    await requireMountRight(`unmount ${positionals.join(" ")}`);
    const directories: UnmountRow[] = [];
    for (const directory of positionals) {
      const result = await unmountImage(store, directory, {
        lazy: values.lazy,
        keepUpper: values["keep-upper"],
        signal,
      });
      directories.push({ directory, ...result });
    }
    await emit(context, { directories }, (value) => value.directories.map(formatUnmount).join(""));
    return undefined;
  },
});

export interface UnmountRow {
  readonly directory: string;
  readonly unmounted: boolean;
  readonly upper: string | undefined;
}

export function formatUnmount({ directory, unmounted, upper }: UnmountRow): string {
  const kept = upper === undefined ? "" : `; its changes are in ${singleLine(upper)}`;
  return `${singleLine(directory)}: ${unmounted ? `unmounted${kept}` : "nothing was mounted"}\n`;
}
