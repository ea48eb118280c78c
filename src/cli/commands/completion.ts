import { defineCommand } from "../command.ts";
import { formatCompletion, SHELLS } from "../completion.ts";
import { loadCommands } from "../table.ts";
import { UsageError } from "../usage.ts";

export const completion = defineCommand({
  name: "completion",
  summary: "Print a completion script for a shell",
  description: "The script completes commands, options, their values, files, and the names of images in the store.",
  arguments: [{ name: "SHELL", help: `One of ${SHELLS.join(", ")}`, completes: "none" }],
  options: {},
  examples: [
    { command: "source <(shale completion bash)", help: "For this bash" },
    { command: "shale completion zsh > ~/.zfunc/_shale", help: "For every zsh, with ~/.zfunc in fpath" },
    { command: "shale completion fish > ~/.config/fish/completions/shale.fish", help: "For every fish" },
  ],
  async run({ positionals, stdout }) {
    const shell = SHELLS.find((name) => name === positionals[0]);
    if (shell === undefined) {
      throw new UsageError(
        `Cannot complete for ${positionals[0]}: it is not one of ${SHELLS.join(", ")}`,
        "name a shell",
      );
    }
    await stdout.write(formatCompletion(shell, await loadCommands()));
    return undefined;
  },
});
