/**
 * containerd's filters of snapshots: `name==x,labels."a.b"~=/c+/`. Selectors of one filter must all hold, of several filters
 * one; no filter, and "", is all. Grammar and meaning as containerd's package filters has them.
 */
import { ShaleError } from "../../errors/index.ts";
import type { SnapshotInfo } from "../types.ts";
import { FILTER_LIMITS } from "./limits.ts";
import { parseFilter, type Selector } from "./parser.ts";
import { compileRegExp } from "./regexp.ts";

export type Filterable = Pick<SnapshotInfo, "name" | "parent" | "kind" | "labels">;

export interface Filter {
  matches(snapshot: Filterable): boolean;
  /**
   * For a quick look-up: what `matches` is certain to insist on. Each alternative stands for one filter; every snapshot that
   * matches has all of one alternative.
   */
  readonly alternatives: readonly Readonly<{ name?: string; parent?: string; ref?: string }>[];
}

type Condition = (snapshot: Filterable) => boolean;

/** INVALID_ARGUMENT for bad syntax and for what is over a limit. */
export function compileFilters(filters: readonly string[], refLabel: string): Filter {
  if (filters.length > FILTER_LIMITS.filters) {
    throw new ShaleError("INVALID_ARGUMENT", `more than ${FILTER_LIMITS.filters} filters: invalid argument`);
  }
  const parsed = filters.map(parseFilter);
  if (parsed.length === 0) parsed.push([]);
  const conditions = parsed.map((selectors) => selectors.map(compile));
  return {
    matches: (snapshot) => conditions.some((all) => all.every((holds) => holds(snapshot))),
    alternatives: parsed.map((selectors) => Object.assign({}, ...selectors.map((one) => certainty(one, refLabel)))),
  };
}

function compile({ path, operator, value }: Selector): Condition {
  switch (operator) {
    case "present":
      return (snapshot) => fieldOf(snapshot, path) !== undefined;
    case "==":
      return (snapshot) => fieldOf(snapshot, path) === value;
    case "!=":
      return (snapshot) => (fieldOf(snapshot, path) ?? "") !== value;
    case "~=": {
      const expression = compileRegExp(value);
      return (snapshot) => expression.matches(fieldOf(snapshot, path) ?? "");
    }
  }
}

function certainty({ path, operator, value }: Selector, refLabel: string): object {
  if (operator !== "==") return {};
  if (path.length === 1 && (path[0] === "name" || path[0] === "parent")) return { [path[0]]: value };
  if (path[0] === "labels" && path.slice(1).join(".") === refLabel) return { ref: value };
  return {};
}

function fieldOf(snapshot: Filterable, path: readonly string[]): string | undefined {
  const [field, ...rest] = path;
  switch (field) {
    case "name":
    case "parent":
    case "kind":
      return snapshot[field];
    case "labels": {
      const key = rest.join(".");
      return Object.hasOwn(snapshot.labels, key) ? snapshot.labels[key] : undefined;
    }
    default:
      return undefined;
  }
}
