/**
 * Completion scripts for bash, zsh and fish, from the tables. Pure. The scripts call shale only for the names of images;
 * all else is written into them.
 */
import { type Command, type Completes, GLOBAL_OPTIONS, type OptionSpec, type OptionTable } from "./command.ts";
import { takesValue } from "./parse.ts";
import { FAMILIES } from "./table.ts";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

export function formatCompletion(shell: Shell, commands: readonly Command[]): string {
  return { bash: formatBash, zsh: formatZsh, fish: formatFish }[shell](commands);
}

/** For a single-quoted word of sh, zsh and fish. Help texts hold no backslash, which fish alone would read. */
function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function completesOf(spec: OptionSpec): Completes {
  return spec.type === "string" ? (spec.completes ?? "none") : "none";
}

function choicesOf(spec: OptionSpec): readonly string[] {
  return spec.type === "string" ? (spec.choices ?? []) : [];
}

/** "--output" and "-o". */
function spellings(name: string, spec: OptionSpec): readonly string[] {
  return spec.short === undefined ? [`--${name}`] : [`--${name}`, `-${spec.short}`];
}

const BASH_ACTIONS: Readonly<Record<Completes, string>> = {
  file: `COMPREPLY=($(compgen -f -- "$cur"))`,
  directory: `COMPREPLY=($(compgen -d -- "$cur"))`,
  image: `COMPREPLY=($(compgen -W "$(shale images --names 2>/dev/null)" -- "$cur"))`,
  none: "COMPREPLY=()",
};

/** Commands by first word: one for most, several for a family. */
function byFirstWord(commands: readonly Command[]): Map<string, readonly Command[]> {
  return Map.groupBy(commands, (command) => command.name.split(" ")[0]!);
}

function lastWord({ name }: Command): string {
  return name.slice(name.indexOf(" ") + 1);
}

function isFamily(members: readonly Command[]): boolean {
  return members.some((command) => command.name.includes(" "));
}

function formatBash(commands: readonly Command[]): string {
  const valued = Object.entries(GLOBAL_OPTIONS).filter(([, spec]) => takesValue(spec));
  const skip = valued.flatMap(([name, spec]) => spellings(name, spec)).join("|");
  const values = [
    ...bashValues("*", GLOBAL_OPTIONS),
    ...commands.flatMap((command) => bashValues(command.name, command.options)),
  ];
  const globals = optionWords(GLOBAL_OPTIONS);
  const options = commands.map((command) => {
    const words = [...optionWords(command.options), ...globals].join(" ");
    return `      '${command.name}') words='${words}' ;;`;
  });
  const positionals = commands.map((command) => `    '${command.name}') ${bashPositional(command)} ;;`);
  const words = byFirstWord(commands);
  const families = [...words].filter(([, members]) => isFamily(members));
  for (const [family, members] of families) {
    const names = members.map(lastWord).join(" ");
    positionals.push(`    ${family}) COMPREPLY=($(compgen -W '${names}' -- "$cur")) ;;`);
  }
  const names = families.map(([family]) => family).join("|") || "''";
  return `# bash completion for shale: source <(shale completion bash)
_shale() {
  local cur prev words i command=
  cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD-1]}
  # With bash-completion, a reference with a colon stays one word.
  if declare -F _get_comp_words_by_ref >/dev/null; then _get_comp_words_by_ref -n : cur prev; fi
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in
      ${skip}) ((i++)) ;;
      -*) ;;
      *)
        command=\${command:+$command }\${COMP_WORDS[i]}
        case $command in ${names}) ;; *) break ;; esac
        ;;
    esac
  done
  case $command/$prev in
${values.join("\n")}
  esac
  if [[ $cur == -* ]]; then
    case $command in
${options.join("\n")}
      *) words='${globals.join(" ")}' ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
    return
  fi
  case $command in
    '') COMPREPLY=($(compgen -W '${[...words.keys()].join(" ")} help' -- "$cur")) ;;
${positionals.join("\n")}
  esac
  if declare -F __ltrim_colon_completions >/dev/null; then __ltrim_colon_completions "$cur"; fi
}
complete -o filenames -F _shale shale
`;
}

function optionWords(table: OptionTable): readonly string[] {
  return Object.entries(table).flatMap(([name, spec]) => spellings(name, spec));
}

function bashValues(command: string, table: OptionTable): readonly string[] {
  return Object.entries(table)
    .filter(([, spec]) => takesValue(spec))
    .map(([name, spec]) => {
      const pattern = spellings(name, spec).map((spelling) => `${command === "*" ? "*" : `'${command}'`}/${spelling}`);
      const choices = choicesOf(spec);
      const action =
        choices.length > 0
          ? `COMPREPLY=($(compgen -W '${choices.join(" ")}' -- "$cur"))`
          : BASH_ACTIONS[completesOf(spec)];
      return `    ${pattern.join("|")}) ${action}; return ;;`;
    });
}

/** One answer for all of a command's arguments: telling them apart would need the whole parser in bash. */
function bashPositional(command: Command): string {
  if (command.name === "completion") return `COMPREPLY=($(compgen -W '${SHELLS.join(" ")}' -- "$cur"))`;
  const kinds = new Set(command.arguments.map((each) => each.completes ?? "none"));
  kinds.delete("none");
  const kind = [...kinds];
  if (kind.length === 0) return ":";
  return kind.map((each, at) => (at === 0 ? BASH_ACTIONS[each] : BASH_ACTIONS[each].replace("=(", "+=("))).join("; ");
}

const ZSH_ACTIONS: Readonly<Record<Completes, string>> = {
  file: "_files",
  directory: "_directories",
  image: "_shale_images",
  none: "",
};

function formatZsh(commands: readonly Command[]): string {
  const describe = (name: string, summary: string) => quote(`${name}:${summary.replaceAll(":", "\\:")}`);
  const argumentsOf = (command: Command) => {
    const specs = [...zshOptions(command.options), ...zshOptions(GLOBAL_OPTIONS), ...zshArguments(command)];
    return `${lastWord(command)}) _arguments -s ${specs.join(" ")} ;;`;
  };
  const described: string[] = [];
  const cases: string[] = [];
  for (const [word, members] of byFirstWord(commands)) {
    if (!isFamily(members)) {
      described.push(describe(word, members[0]!.summary));
      cases.push(`        ${argumentsOf(members[0]!)}`);
      continue;
    }
    described.push(describe(word, FAMILIES[word] ?? word));
    cases.push(`        ${word})
          _arguments -s -C ${zshOptions(GLOBAL_OPTIONS).join(" ")} '1:command:->command' '*::argument:->argument'
          case $state in
            command)
              local -a commands
              commands=(${members.map((command) => describe(lastWord(command), command.summary)).join(" ")})
              _describe command commands
              ;;
            argument)
              case $line[1] in
${members.map((command) => `                ${argumentsOf(command)}`).join("\n")}
              esac
              ;;
          esac
          ;;`);
  }
  return `#compdef shale
# zsh completion for shale: shale completion zsh > DIR/_shale, with DIR in fpath
_shale_images() {
  local -a references
  references=(\${(f)"$(shale images --names 2>/dev/null)"})
  compadd -a references
}
_shale() {
  local context state state_descr line
  typeset -A opt_args
  _arguments -s -C ${zshOptions(GLOBAL_OPTIONS).join(" ")} '1:command:->command' '*::argument:->argument'
  case $state in
    command)
      local -a commands
      commands=(${described.join(" ")})
      _describe command commands
      ;;
    argument)
      case $line[1] in
${cases.join("\n")}
      esac
      ;;
  esac
}
if [[ $funcstack[1] == _shale ]]; then _shale "$@"; else compdef _shale shale; fi
`;
}

function zshOptions(table: OptionTable): readonly string[] {
  return Object.entries(table).map(([name, spec]) => {
    const text = spec.help.replaceAll(/[[\]:]/g, "\\$&");
    const choices = choicesOf(spec);
    const action = choices.length > 0 ? `(${choices.join(" ")})` : ZSH_ACTIONS[completesOf(spec)];
    const value =
      spec.type === "string" || spec.type === "number" ? `:${spec.value.replaceAll(":", "\\:")}:${action}` : "";
    const repeat = spec.type === "string" && spec.multiple ? "*" : "";
    // "=-": the value is part of the same word, and may be left out.
    if (spec.type === "boolean") return quote(`--${name}=-[${text}]::value:(true false)`);
    if (spec.short === undefined) return quote(`${repeat}--${name}[${text}]${value}`);
    // Braces are expanded by zsh, so they stand outside the quotes.
    return `{-${spec.short},--${name}}${quote(`[${text}]${value}`)}`;
  });
}

function zshArguments(command: Command): readonly string[] {
  if (command.name === "completion") return [quote(`1:shell:(${SHELLS.join(" ")})`)];
  return command.arguments.map((argument, at) => {
    const place = argument.repeated ? "*" : String(at + 1);
    return quote(`${place}:${argument.name}:${ZSH_ACTIONS[argument.completes ?? "none"]}`);
  });
}

const FISH_ACTIONS: Readonly<Record<Completes, string>> = {
  file: "(__fish_complete_path)",
  directory: "(__fish_complete_directories)",
  image: "(shale images --names 2>/dev/null)",
  none: "",
};

function formatFish(commands: readonly Command[]): string {
  const words = byFirstWord(commands);
  const names = [...words.keys()].join(" ");
  const families = [...words].filter(([, members]) => isFamily(members)).map(([word]) => word);
  const lines = [
    "# fish completion for shale: shale completion fish > ~/.config/fish/completions/shale.fish",
    "complete -c shale -f",
    ...fishOptions("", GLOBAL_OPTIONS),
  ];
  const seen = (word: string) => `__fish_seen_subcommand_from ${word}`;
  for (const family of families) {
    const none = quote(`not __fish_seen_subcommand_from ${names}`);
    lines.push(`complete -c shale -n ${none} -a ${family} -d ${quote(FAMILIES[family] ?? family)}`);
  }
  for (const command of commands) {
    const [family = ""] = command.name.split(" ");
    const word = lastWord(command);
    const inFamily = family !== word;
    const siblings = words.get(family)!.map(lastWord).join(" ");
    const none = quote(inFamily ? `${seen(family)}; and not ${seen(siblings)}` : `not ${seen(names)}`);
    const outside = families.map((each) => `; and not ${seen(each)}`).join("");
    const some = quote(inFamily ? `${seen(family)}; and ${seen(word)}` : `${seen(word)}${outside}`);
    lines.push(`complete -c shale -n ${none} -a ${word} -d ${quote(command.summary)}`);
    lines.push(...fishOptions(` -n ${some}`, command.options));
    const kinds = new Set(command.arguments.map((each) => FISH_ACTIONS[each.completes ?? "none"]));
    if (command.name === "completion") kinds.add(SHELLS.join(" "));
    for (const action of kinds) if (action !== "") lines.push(`complete -c shale -n ${some} -a ${quote(action)}`);
  }
  return `${lines.join("\n")}\n`;
}

function fishOptions(condition: string, table: OptionTable): readonly string[] {
  return Object.entries(table).map(([name, spec]) => {
    const short = spec.short === undefined ? "" : ` -s ${spec.short}`;
    const choices = choicesOf(spec);
    const action = choices.length > 0 ? choices.join(" ") : FISH_ACTIONS[completesOf(spec)];
    const value = takesValue(spec) ? ` -x${action === "" ? "" : ` -a ${quote(action)}`}` : "";
    return `complete -c shale${condition}${short} -l ${name}${value} -d ${quote(spec.help)}`;
  });
}
