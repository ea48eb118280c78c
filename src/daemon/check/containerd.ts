/**
 * Judges containerd's effective configuration (`containerd config dump`) by its version: whether it knows this daemon, in all the places
 * where it has to, and whether a line in it would stop it. Pure.
 */
import { shownValue } from "../../errors/index.ts";
import { containerdLines, differName, type LinesOptions } from "./containerd-lines.ts";
import { abilitiesOf, type ContainerdVersion, formatContainerdVersion } from "./containerd-version.ts";
import type { Finding, FindingState } from "./finding.ts";

export interface ContainerdFacts {
  readonly version: ContainerdVersion;
  /** The parsed dump: untrusted, any shape. */
  readonly config: unknown;
  /** The file that lines are to be added to. */
  readonly file: string;
}

export interface ContainerdReport {
  readonly findings: readonly Finding[];
  /** What a configuration that lacks it all needs; undefined when nothing is missing. */
  readonly lines: string | undefined;
}

type Expected = Omit<LinesOptions, "name" | "cri">;

export function judgeContainerd({ version, config, file }: ContainerdFacts, expected: Expected): ContainerdReport {
  const abilities = abilitiesOf(version);
  const findings: Finding[] = [];
  const say = (state: FindingState, text: string, fix?: string) =>
    findings.push({ topic: "containerd", state, text, ...(fix === undefined ? {} : { fix }) });
  let missing = false;
  const lack = (state: FindingState, text: string, fix: string) => {
    missing = true;
    say(state, text, fix);
  };
  const shown = `containerd ${formatContainerdVersion(version)}`;
  const plugins = proxyPlugins(config);

  const diffs = plugins.filter(({ type }) => type === "diff" || type === "io.containerd.differ.v1");
  if (diffs.length > 0 && !abilities.diffPlugin) {
    const names = diffs.map(({ name }) => `[proxy_plugins.${name}]`).join(", ");
    say(
      "problem",
      `${shown} panics at its start because of ${names}`,
      `Remove it from ${file}: type "diff" needs 1.7.4`,
    );
  }

  const ours = plugins.find(({ type, address }) => isSnapshotter(type) && address === expected.address);
  const name = ours?.name ?? "shale";
  if (ours === undefined) {
    lack(
      "problem",
      `${shown} knows no snapshotter at ${expected.address}`,
      `Add the lines below to ${file} and restart containerd`,
    );
  } else {
    say("ok", `${shown} has this daemon as the snapshotter ${name}`);
    if (abilities.exports && ours.exports.root !== expected.root) {
      const found = ours.exports.root === undefined ? "is missing" : `is ${shownValue(ours.exports.root, 200)}`;
      lack(
        "warning",
        `exports.root of [proxy_plugins.${name}] ${found}: Kubernetes can't measure the image file system`,
        `Set it to ${expected.root}`,
      );
    }
    if (abilities.remoteByTransfer && expected.remote && ours.exports.enable_remote_snapshot_annotations !== "true") {
      lack(
        "note",
        `${shown} does not tell this daemon which image a layer is of, so containerd fetches the layers`,
        `Set enable_remote_snapshot_annotations = "true" in [proxy_plugins.${name}.exports]`,
      );
    }
  }

  if (abilities.diffPlugin) {
    const differ = diffs.find(({ address }) => address === expected.address);
    if (differ === undefined) {
      lack(
        "warning",
        "containerd unpacks layers into directories: this daemon is not among its differs",
        `Add [proxy_plugins.${differName(name)}]`,
      );
    } else {
      const order = strings(at(config, ["plugins", "io.containerd.service.v1.diff-service", "default"]));
      const [mine, walking] = [order.indexOf(differ.name), order.indexOf("walking")];
      if (mine < 0 || (walking >= 0 && walking < mine)) {
        lack(
          "warning",
          `The differ ${differ.name} is ${mine < 0 ? "not in" : 'behind "walking" in'} the list of the diff service`,
          `Set default = ["${differ.name}", "walking"] in [plugins."io.containerd.service.v1.diff-service"]`,
        );
      } else say("ok", `Layers are unpacked by ${differ.name}`);
    }
  }

  if (abilities.transfer && ours !== undefined) {
    const unpack = tables(at(config, ["plugins", "io.containerd.transfer.v1.local", "unpack_config"]));
    const mine = unpack.find((entry) => entry.snapshotter === name);
    const state = abilities.remoteByTransfer ? "problem" : "warning";
    if (mine === undefined) {
      lack(
        state,
        `The transfer service does not unpack for ${name}${abilities.remoteByTransfer ? ": Kubernetes and ctr can't pull" : ""}`,
        'Add an unpack_config to [plugins."io.containerd.transfer.v1.local"]',
      );
    } else if (abilities.diffPlugin && diffs.every(({ name: differ }) => differ !== mine.differ)) {
      lack(
        "note",
        `The transfer service unpacks for ${name} with ${JSON.stringify(mine.differ ?? "the default differ")}`,
        `Set differ = "${differName(name)}" in that unpack_config`,
      );
    }
  }

  judgeCri(config, version, { name, remote: expected.remote }, say);
  const lines = missing ? containerdLines(version, { ...expected, name, cri: false }) : undefined;
  return { findings, lines };
}

function judgeCri(
  config: unknown,
  { major }: ContainerdVersion,
  { name, remote }: { readonly name: string; readonly remote: boolean },
  say: (state: FindingState, text: string, fix?: string) => void,
): void {
  const section =
    major >= 2 ? ["plugins", "io.containerd.cri.v1.images"] : ["plugins", "io.containerd.grpc.v1.cri", "containerd"];
  const cri = at(config, section);
  if (!isTable(cri)) return; // no CRI plugin in this containerd
  const written = `[${section.map((part) => (part.includes(".") ? JSON.stringify(part) : part)).join(".")}]`;
  if (cri.snapshotter !== name) {
    const used = cri.snapshotter === undefined ? "containerd's default snapshotter" : shownValue(cri.snapshotter);
    say("note", `Kubernetes uses ${used} on this node`, `Set snapshotter = "${name}" in ${written}`);
    return;
  }
  say("ok", `Kubernetes uses ${name} on this node`);
  if (major < 2 && remote && cri.disable_snapshot_annotations !== false) {
    say(
      "note",
      "CRI does not tell this daemon which image a layer is of, so containerd fetches the layers",
      `Set disable_snapshot_annotations = false in ${written}`,
    );
  }
}

interface ProxyPlugin {
  readonly name: string;
  readonly type: unknown;
  readonly address: unknown;
  readonly exports: Readonly<Record<string, unknown>>;
}

function proxyPlugins(config: unknown): ProxyPlugin[] {
  const plugins = at(config, ["proxy_plugins"]);
  if (!isTable(plugins)) return [];
  return Object.entries(plugins).flatMap(([name, plugin]) => {
    if (!isTable(plugin)) return [];
    const { type, address, exports } = plugin;
    return [{ name, type, address, exports: isTable(exports) ? exports : {} }];
  });
}

function isSnapshotter(type: unknown): boolean {
  return type === "snapshot" || type === "io.containerd.snapshotter.v1";
}

type Table = Readonly<Record<string, unknown>>;

function isTable(value: unknown): value is Table {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function at(value: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>(
    (inner, key) => (isTable(inner) && Object.hasOwn(inner, key) ? inner[key] : undefined),
    value,
  );
}

function strings(value: unknown): readonly string[] {
  return Array.isArray(value) ? value.filter((each): each is string => typeof each === "string") : [];
}

function tables(value: unknown): readonly Table[] {
  return Array.isArray(value) ? value.filter(isTable) : [];
}
