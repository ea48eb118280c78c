import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { judgeContainerd } from "./containerd.ts";
import { containerdLines } from "./containerd-lines.ts";
import { abilitiesOf, parseContainerdVersion } from "./containerd-version.ts";
import type { Finding } from "./finding.ts";
import { judgeMachine, judgeRoot, type MachineFacts, type RootFacts } from "./machine.ts";
import { parse } from "smol-toml";

const expected = { address: "/run/shale/shale.sock", root: "/var/lib/shale", remote: true, platform: "linux/amd64" };
const file = "/etc/containerd/config.toml";

describe("parseContainerdVersion()", () => {
  for (const [text, version] of [
    ["containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3", "1.6.20"],
    ["containerd containerd.io v2.1.9 abcdef", "2.1.9"],
    ["containerd github.com/containerd/containerd/v2 2.1.4-k3s1 x", "2.1.4"],
    ["nothing", undefined],
  ] as const) {
    test(text, () => {
      const parsed = parseContainerdVersion(text);
      assert.equal(parsed && `${parsed.major}.${parsed.minor}.${parsed.patch}`, version);
    });
  }
});

describe("abilitiesOf()", () => {
  for (const [version, able] of [
    ["1.6.20", []],
    ["1.6.32", ["exports"]],
    ["1.7.3", ["transfer"]],
    ["1.7.4", ["diffPlugin", "transfer"]],
    ["1.7.16", ["diffPlugin", "exports", "transfer"]],
    ["1.7.23", ["diffPlugin", "exports", "transfer", "remapIds"]],
    ["2.0.0", ["diffPlugin", "exports", "transfer", "remapIds"]],
    ["2.1.0", ["diffPlugin", "exports", "transfer", "remoteByTransfer", "remapIds"]],
  ] as const) {
    test(version, () => {
      const abilities = Object.entries(abilitiesOf(parseContainerdVersion(version)!));
      assert.deepEqual(
        abilities.filter(([, value]) => value === true).map(([name]) => name),
        able,
      );
    });
  }
});

const judge = (version: string, config: unknown) =>
  judgeContainerd({ version: parseContainerdVersion(version)!, config, file }, expected);
const said = (findings: readonly Finding[], state: Finding["state"]) =>
  findings.filter((each) => each.state === state).map(({ text, fix }) => `${text} -> ${fix}`);

describe("judgeContainerd()", () => {
  for (const version of ["1.6.20", "1.7.3", "1.7.23", "2.0.0", "2.1.9", "2.3.4"]) {
    test(`${version}: the lines that it prints are all that it asks for`, () => {
      const empty = judge(version, { version: 2 });
      assert.ok(said(empty.findings, "problem").some((text) => text.includes("knows no snapshotter")));
      const after = judge(version, parse(empty.lines!));
      assert.deepEqual(
        after.findings.filter(({ state }) => state !== "ok"),
        [],
      );
      assert.equal(after.lines, undefined);
    });

    test(`${version}: nor does anything remain for Kubernetes with its lines`, () => {
      const config = parse(
        containerdLines(parseContainerdVersion(version)!, { ...expected, name: "shale", cri: true }),
      );
      assert.deepEqual(
        judge(version, config).findings.filter(({ state }) => state !== "ok"),
        [],
      );
    });
  }

  const CASES: readonly {
    readonly name: string;
    readonly version: string;
    readonly state: Finding["state"];
    readonly change: (lines: string) => string;
    readonly says: RegExp;
  }[] = [
    {
      name: "a differ that stops containerd from starting",
      version: "1.6.20",
      state: "problem",
      change: (lines) => `${lines}\n[proxy_plugins.other]\ntype = "diff"\naddress = "/x"\n`,
      says: /1\.6\.20 panics at its start because of \[proxy_plugins\.other\] -> Remove it from \/etc\/containerd/,
    },
    {
      name: "another root in exports",
      version: "2.1.9",
      state: "warning",
      change: (lines) => lines.replace('root = "/var/lib/shale"', 'root = "/other"'),
      says: /exports\.root of \[proxy_plugins\.shale\] is "\/other": .* -> Set it to \/var\/lib\/shale/,
    },
    {
      name: "a walking differ in front",
      version: "2.1.9",
      state: "warning",
      change: (lines) => lines.replace('["shale-diff", "walking"]', '["walking", "shale-diff"]'),
      says: /shale-diff is behind "walking" in the list/,
    },
    {
      name: "no unpack_config",
      version: "2.1.9",
      state: "problem",
      change: (lines) => lines.replace('snapshotter = "shale"', 'snapshotter = "other"'),
      says: /transfer service does not unpack for shale: Kubernetes and ctr can't pull/,
    },
    {
      name: "no remote annotations",
      version: "2.1.9",
      state: "note",
      change: (lines) => lines.replace(/^.*enable_remote_snapshot_annotations.*$/m, ""),
      says: /does not tell this daemon which image a layer is of/,
    },
    {
      name: "Kubernetes on another snapshotter",
      version: "2.1.9",
      state: "note",
      change: (lines) => `${lines}\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "overlayfs"\n`,
      says: /Kubernetes uses "overlayfs" on this node -> Set snapshotter = "shale" in \[plugins\."io\.containerd\.cri\.v1\.images"\]/,
    },
    {
      name: "CRI without annotations",
      version: "1.6.20",
      state: "note",
      change: (lines) => `${lines}\n[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "shale"\n`,
      says: /Set disable_snapshot_annotations = false in \[plugins\."io\.containerd\.grpc\.v1\.cri"\.containerd\]/,
    },
  ];
  for (const { name, version, state, change, says } of CASES) {
    test(`${version}: finds ${name}`, () => {
      const lines = containerdLines(parseContainerdVersion(version)!, { ...expected, name: "shale", cri: false });
      assert.match(said(judge(version, parse(change(lines))).findings, state).join("\n"), says);
    });
  }

  test("takes any shape of configuration", () => {
    const shapes = [undefined, 3, [], { proxy_plugins: 1 }, { proxy_plugins: { a: 1 } }, { plugins: [] }];
    for (const shape of shapes) assert.ok(judge("2.1.9", shape).lines !== undefined);
  });
});

describe("judgeMachine()", () => {
  const good: MachineFacts = {
    ...{ root: true, fileSystems: new Set(["erofs", "overlay"]), fileBacked: true, loop: true },
    kernel: { major: 6, minor: 12, release: "6.12.0" },
  };
  const old = (major: number, minor: number) => ({ major, minor, release: `${major}.${minor}.0` });
  const CASES: readonly (readonly [
    name: string,
    change: Partial<MachineFacts>,
    state: Finding["state"],
    says: RegExp,
  ])[] = [
    ["a good one", {}, "ok", /mounts EROFS from files/],
    ["no root", { root: false }, "problem", /may not mount -> Run the daemon as root/],
    ["no erofs", { fileSystems: new Set(["overlay"]) }, "problem", /no erofs/],
    ["no overlay", { fileSystems: new Set(["erofs"]) }, "problem", /no overlay/],
    ["an old kernel", { kernel: old(5, 10), fileBacked: undefined }, "problem", /5\.16 or newer/],
    ["loop devices", { kernel: old(6, 1), fileBacked: false }, "note", /through loop devices/],
    [
      "neither files nor loops",
      { kernel: old(6, 1), fileBacked: false, loop: false },
      "problem",
      /no \/dev\/loop-control/,
    ],
    ["no idmapped overlays", { kernel: old(5, 16) }, "note", /idmapped/],
  ];
  for (const [name, change, state, says] of CASES) {
    test(name, () => assert.match(said(judgeMachine({ ...good, ...change }), state).join("\n"), says));
  }
});

describe("judgeRoot()", () => {
  const GiB = 2 ** 30;
  const good: RootFacts = {
    ...{ path: "/var/lib/shale", type: 0xef53, usedShare: 0.5, available: 50 * GiB },
    ...{ freeInodes: 1e6, highWatermark: 90 },
  };
  const CASES: readonly (readonly [name: string, change: Partial<RootFacts>, state: Finding["state"], says: RegExp])[] =
    [
      ["a good one", {}, "ok", /has 50 GiB left/],
      ["NFS", { type: 0x6969 }, "problem", /is on NFS/],
      ["overlayfs", { type: 0x794c7630 }, "problem", /is on overlayfs/],
      ["tmpfs", { type: 0x01021994 }, "warning", /is on tmpfs/],
      [
        "a full disk",
        { usedShare: 0.95, available: 5 * GiB },
        "problem",
        /95\.0 % full, above the high watermark of 90 %: new layers are refused/,
      ],
      ["little space", { usedShare: 0.5, available: GiB / 2 }, "warning", /512 MiB left/],
      ["few inodes", { freeInodes: 5 }, "warning", /5 inodes left/],
    ];
  for (const [name, change, state, says] of CASES) {
    test(name, () => assert.match(said(judgeRoot({ ...good, ...change }), state).join("\n"), says));
  }
});
