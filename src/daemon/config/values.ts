/** Kinds of values that a configuration file can have: how each is read, what is refused, how it is written again. Pure. */

export interface Spec<T> {
  /** For documents: "true or false", "a size from 1 MiB to 1 TiB". */
  readonly allowed: string;
  readonly default: T;
  /** One sentence or two, for the documents and for --print-config. */
  readonly help: string;
  /** SIGHUP applies a new value; others need a restart. */
  readonly reload: boolean;
  /** The value, or undefined when it is not `allowed`. */
  parse(value: unknown): T | undefined;
  /** As TOML. */
  format(value: T): string;
}

interface Common<T> {
  readonly default: T;
  readonly help: string;
  readonly reload?: true;
}

function spec<T>(
  { default: value, help, reload = false }: Common<T> | (Omit<Common<T>, "reload"> & { readonly reload?: boolean }),
  allowed: string,
  parse: Spec<T>["parse"],
  format: Spec<T>["format"] = (each) => JSON.stringify(each),
): Spec<T> {
  return { default: value, help, reload, allowed, parse, format };
}

export function choice<const T extends string | number>(choices: readonly T[], common: Common<NoInfer<T>>): Spec<T> {
  return spec<T>(common, choices.map((each) => JSON.stringify(each)).join(", "), (value) =>
    choices.find((each) => each === value),
  );
}

export function flag(common: Common<boolean>): Spec<boolean> {
  return spec(common, "true or false", (value) => (typeof value === "boolean" ? value : undefined));
}

/** An absolute path; "" where that is the default, meaning none. */
export function path(common: Common<string>): Spec<string> {
  const allowed = common.default === "" ? 'an absolute path, or "" for none' : "an absolute path";
  return spec(common, allowed, (value) => {
    if (typeof value !== "string" || value.includes("\0")) return undefined;
    return value.startsWith("/") || (value === "" && common.default === "") ? value : undefined;
  });
}

/** "HOST:PORT", "[::1]:PORT", the path of a unix socket, or "" for none. */
export function endpoint(common: Common<string>): Spec<string> {
  return spec(common, '"HOST:PORT", the absolute path of a socket, or "" for none', (value) => {
    if (typeof value !== "string") return undefined;
    return value === "" || value.startsWith("/") || parseHostPort(value) !== undefined ? value : undefined;
  });
}

export function parseHostPort(text: string): { readonly host: string; readonly port: number } | undefined {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]/\s]+)):([0-9]{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  return match === null || port > 65535 ? undefined : { host: (match[1] ?? match[2])!, port };
}

export function integer(
  common: Common<number> & { readonly min: number; readonly max: number; readonly unit: string },
): Spec<number> {
  const { min, max, unit } = common;
  return spec(common, `a whole number of ${unit} from ${min} to ${max}`, (value) =>
    typeof value === "number" && Number.isInteger(value) && value >= min && value <= max ? value : undefined,
  );
}

const SIZE_UNITS: Readonly<Record<string, number>> = {
  B: 1,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
};

/** Bytes, written with a unit: "512 MiB". */
export function size(common: Common<number> & { readonly min: number; readonly max: number }): Spec<number> {
  const { min, max } = common;
  return spec(
    common,
    `a size from "${formatSize(min)}" to "${formatSize(max)}", with a unit: B, KiB, MiB, GiB, TiB`,
    (value) => {
      const match = typeof value === "string" ? /^(\d{1,15}(?:\.\d{1,6})?) ?(B|[KMGT]iB)$/.exec(value) : null;
      const bytes = match === null ? Number.NaN : Number(match[1]) * SIZE_UNITS[match[2]!]!;
      return Number.isInteger(bytes) && bytes >= min && bytes <= max ? bytes : undefined;
    },
    (value) => JSON.stringify(formatSize(value)),
  );
}

export function formatSize(bytes: number): string {
  const [unit, factor] = Object.entries(SIZE_UNITS).findLast(([, each]) => bytes >= each && bytes % each === 0) ?? [
    "B",
    1,
  ];
  return `${bytes / factor} ${unit}`;
}

const DURATION_UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Milliseconds, written with a unit: "10s". */
export function duration(common: Common<number> & { readonly min: number; readonly max: number }): Spec<number> {
  const { min, max } = common;
  return spec(
    common,
    `a time from "${formatMs(min)}" to "${formatMs(max)}", with a unit: ms, s, m, h, d`,
    (value) => {
      const match = typeof value === "string" ? /^(\d{1,9}) ?(ms|s|m|h|d)$/.exec(value) : null;
      const ms = match === null ? Number.NaN : Number(match[1]) * DURATION_UNITS[match[2]!]!;
      return ms >= min && ms <= max ? ms : undefined;
    },
    (value) => JSON.stringify(formatMs(value)),
  );
}

function formatMs(ms: number): string {
  const [unit, factor] = Object.entries(DURATION_UNITS).findLast(([, each]) => ms >= each && ms % each === 0) ?? [
    "ms",
    1,
  ];
  return `${ms / factor}${unit}`;
}
