/**
 * `shale daemon check`: looks at this machine and changes nothing on it. Gathering is here, judging is pure and beside it.
 */
import { dirname } from "node:path";
import { parse as parseToml, TomlError } from "smol-toml";
import { ShaleError } from "../../errors/index.ts";
import { platformOfNode } from "../../oci/index.ts";
import { RpcClient } from "../../rpc/index.ts";
import {
  answersAt,
  fileSystemStatus,
  findFile,
  fileSystemTypes,
  isRoot,
  kernelVersion,
  run,
  supportsErofsFileBacked,
  which,
} from "../../sys/index.ts";
import type { Config } from "../config/index.ts";
import { healthMethods, SERVING_STATUS } from "../services/messages.ts";
import { judgeContainerd } from "./containerd.ts";
import { parseContainerdVersion } from "./containerd-version.ts";
import type { Finding } from "./finding.ts";
import { judgeMachine, judgeRoot } from "./machine.ts";

export { containerdLines, type LinesOptions } from "./containerd-lines.ts";
export { type ContainerdVersion, parseContainerdVersion } from "./containerd-version.ts";
export type { Finding, FindingState } from "./finding.ts";

export interface CheckOptions {
  /** containerd's program and its configuration file. */
  readonly containerd: string;
  readonly containerdConfig: string;
  readonly signal: AbortSignal;
}

export interface CheckReport {
  readonly findings: readonly Finding[];
  /** TOML to add to containerd's configuration, when something is missing there. */
  readonly containerdLines: string | undefined;
  readonly containerdConfig: string;
}

const COMMAND_MS = 20_000;

export async function checkMachine(config: Config, options: CheckOptions): Promise<CheckReport> {
  const { containerdConfig } = options;
  const containerd = await checkContainerd(config, options);
  const findings = [
    ...judgeMachine(machineFacts(config)),
    ...judgeRoot(rootFacts(config)),
    await checkSocket(config),
    ...containerd.findings,
  ];
  return { findings, containerdLines: containerd.lines, containerdConfig };
}

function machineFacts({ root }: Config) {
  const database = findFile(`${root}/shale.db`) === undefined ? undefined : `${root}/shale.db`;
  return {
    root: isRoot(),
    kernel: kernelVersion(),
    fileSystems: fileSystemTypes(["erofs", "overlay"]),
    // Tried with a file that is there: a check makes none.
    fileBacked: database !== undefined && isRoot() ? supportsErofsFileBacked(database) : undefined,
    loop: findFile("/dev/loop-control") !== undefined,
  };
}

function rootFacts({ root, disk }: Config) {
  let existing = root;
  while (findFile(existing) === undefined && existing !== "/") existing = dirname(existing);
  return { path: root, ...fileSystemStatus(existing), highWatermark: disk.highWatermark };
}

async function checkSocket({ address }: Config): Promise<Finding> {
  const topic = "daemon";
  if (findFile(address) === undefined || !(await answersAt(address))) {
    return { topic, state: "note", text: `No daemon answers at ${address}`, fix: "Start it: systemctl start shale" };
  }
  using client = new RpcClient(address);
  try {
    const { status } = await client.unary(healthMethods().Check, { service: "" }, { timeoutMs: 5_000 });
    if (status === SERVING_STATUS.serving) return { topic, state: "ok", text: `A daemon serves at ${address}` };
    return { topic, state: "warning", text: `The daemon at ${address} is not ready` };
  } catch (error) {
    if (!ShaleError.is(error)) throw error;
    return { topic, state: "problem", text: `What answers at ${address} is no shale daemon: ${error.message}` };
  }
}

async function checkContainerd(
  config: Config,
  { containerd, containerdConfig: file, signal }: CheckOptions,
): Promise<{ readonly findings: readonly Finding[]; readonly lines: string | undefined }> {
  const say = (state: Finding["state"], text: string, fix?: string) => ({
    findings: [{ topic: "containerd" as const, state, text, ...(fix === undefined ? {} : { fix }) }],
    lines: undefined,
  });
  if (which(containerd) === undefined && findFile(containerd) === undefined) {
    return say("problem", `There is no ${containerd} here`, "Install it, or name it with --containerd");
  }
  const limits = { signal, timeoutMs: COMMAND_MS };
  const asked = await run(containerd, ["--version"], limits);
  const version = parseContainerdVersion(asked.stdout.toString());
  if (version === undefined) return say("problem", `${containerd} --version gives no version`);
  const given = findFile(file) === undefined ? [] : ["--config", file];
  const dump = await run(containerd, [...given, "config", "dump"], limits);
  if (dump.code !== 0) {
    const [problem = ""] = dump.stderr.toString().trim().split("\n").slice(-1);
    return say("problem", `containerd can't read its configuration ${file}: ${problem}`);
  }
  const { address, root, remote } = config;
  const platform = platformOfNode(process.arch);
  const expected = { address, root, remote: remote.enabled, platform: `${platform.os}/${platform.architecture}` };
  return judgeContainerd({ version, config: parseDump(dump.stdout.toString()), file }, expected);
}

function parseDump(text: string): unknown {
  try {
    return parseToml(text, { integersAsBigInt: "asNeeded" });
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    throw new ShaleError("INTERNAL", `Cannot read what "containerd config dump" prints: line ${error.line}`, {
      cause: error,
    });
  }
}
