/** contrib/: scripts, containerd's lines judged by real containerds, and what Kubernetes is given. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import {
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { parse } from "smol-toml";
import { parseAllDocuments, parseDocument } from "yaml";
import { judgeContainerd } from "../../src/daemon/check/containerd.ts";
import { contribFiles } from "../../src/daemon/check/contrib.ts";
import { parseConfig, parseContainerdVersion } from "../../src/daemon/index.ts";
import { ensureTools, needsRoot } from "../snapshotter/testing/machine.ts";

const CONTRIB = new URL("../../contrib", import.meta.url).pathname;
const expected = { address: "/run/shale/shale.sock", root: "/var/lib/shale", remote: true, platform: "linux/amd64" };

let directory: string;
/** The tree in which each release is installed. */
const trees: Record<string, string> = { "1.6": "/" };
before(async () => {
  directory = mkdtempSync(join(tmpdir(), "shale-contrib-"));
  trees["2.1"] = join(await ensureTools(), "sid");
});
after(() => rmSync(directory, { recursive: true }));

/** Runs a containerd of `release` that finds `host`'s /etc/containerd as its own. */
function containerd(release: string, host: string, args: readonly string[]) {
  const tree = trees[release]!;
  const script =
    'mkdir -p "$1/etc/containerd" && mount --bind "$2/etc/containerd" "$1/etc/containerd" && tree=$1 && shift 2 && exec chroot "$tree" containerd "$@"';
  return spawnSync("unshare", ["--mount", "sh", "-c", script, "sh", tree, host, ...args], { encoding: "utf8" });
}

/** A program that says its version and does nothing else. */
function pretend(version: string): string {
  const path = join(directory, `containerd-${version}`);
  writeFileSync(path, `#!/bin/sh\necho "containerd github.com/containerd/containerd ${version} abc"\n`, {
    mode: 0o755,
  });
  return path;
}

function script(name: string, args: readonly string[]) {
  return spawnSync(join(CONTRIB, name), args, { encoding: "utf8" });
}

let hosts = 0;
function newHost(config?: string): string {
  const host = join(directory, `host${hosts++}`);
  mkdirSync(join(host, "etc/containerd"), { recursive: true });
  if (config !== undefined) writeFileSync(join(host, "etc/containerd/config.toml"), config, { mode: 0o640 });
  return host;
}

test("every script passes shellcheck", () => {
  const scripts = globSync("**/*.sh", { cwd: CONTRIB });
  assert.ok(scripts.length >= 3);
  execFileSync("shellcheck", scripts, { cwd: CONTRIB, stdio: "inherit" });
});

test("contrib/containerd/ is what `npm run docs` writes", () => {
  const files = contribFiles();
  assert.deepEqual(readdirSync(join(CONTRIB, "containerd")).sort(), [...files.keys()].sort());
  for (const [name, text] of files) assert.equal(readFileSync(join(CONTRIB, "containerd", name), "utf8"), text, name);
});

describe("install.sh and uninstall.sh", needsRoot, () => {
  for (const release of ["1.6", "2.1"] as const) {
    for (const existing of ["absent", "small", "full"] as const) {
      test(`containerd ${release} accepts the lines beside a configuration that is ${existing}, and check finds nothing missing`, () => {
        const versionLine = `version = ${release === "1.6" ? 2 : 3}\n`;
        const empty = newHost();
        const full = containerd(release, empty, ["config", "default"]).stdout; // 1.6 has "imports = []" in it
        const before = { absent: undefined, small: `${versionLine}[grpc]\n  gid = 7\n`, full }[existing];
        const host = newHost(before);
        const version = containerd(release, empty, ["--version"]).stdout;
        const program = pretend(/ (v?\d+\.\d+\.\d+)/.exec(version)![1]!);
        const options = ["--host", host, "--no-restart", "--shale", "/opt/shale/shale"];
        for (const time of [1, 2]) {
          const installed = script("install.sh", [...options, "--containerd", program]);
          assert.equal(installed.status, 0, `${time}: ${installed.stderr}`);
        }
        const dump = containerd(release, host, ["config", "dump"]);
        assert.equal(dump.status, 0, dump.stderr);
        const config = parse(dump.stdout, { integersAsBigInt: "asNeeded" });
        const file = "/etc/containerd/config.toml";
        const report = judgeContainerd({ version: parseContainerdVersion(version)!, config, file }, expected);
        assert.deepEqual(
          report.findings.filter(({ state }) => state === "problem" || state === "warning"),
          [],
        );
        assert.equal(report.lines, undefined);
        if (existing !== "absent") assert.equal(statSync(join(host, file)).mode & 0o777, 0o640);
        if (existing === "small") assert.match(dump.stdout, /gid = 7/);
        const unit = readFileSync(join(host, "etc/systemd/system/shale.service"), "utf8");
        assert.match(unit, /^ExecStart=\/opt\/shale\/shale daemon$/m);

        const removed = script("uninstall.sh", ["--host", host, "--no-restart"]);
        assert.equal(removed.status, 0, removed.stderr);
        if (before !== undefined) assert.equal(readFileSync(join(host, file), "utf8"), before);
        assert.equal(existsSync(join(host, "etc/containerd/conf.d/shale.toml")), false);
        assert.equal(existsSync(join(host, "etc/systemd/system/shale.service")), false);
        assert.equal(containerd(release, host, ["config", "dump"]).status, 0);
      });
    }
  }

  test("containerd 2.1 with a configuration of version 2 keeps what that says about CRI", () => {
    const cri = '[plugins."io.containerd.grpc.v1.cri".containerd]\n  snapshotter = "native"\n';
    const host = newHost(`version = 2\n${cri}`);
    const { status } = script("install.sh", [
      "--host",
      host,
      "--no-restart",
      "--no-unit",
      "--containerd",
      pretend("v2.1.9"),
    ]);
    assert.equal(status, 0);
    // With files of two versions it ignores the plugins of the older one, with this warning and nothing else.
    const dump = containerd("2.1", host, ["config", "dump"]);
    assert.doesNotMatch(dump.stderr, /Ignoring unknown key/);
    const config = parse(dump.stdout, { integersAsBigInt: "asNeeded" });
    const version = parseContainerdVersion("2.1.9")!;
    const { findings } = judgeContainerd({ version, config, file: "/etc/containerd/config.toml" }, expected);
    assert.deepEqual(
      findings.filter(({ state }) => state === "problem" || state === "warning"),
      [],
    );
  });

  const VERSIONS: readonly (readonly [version: string, differ: boolean])[] = [
    ["1.6.20~ds1", false],
    ["1.7.3", false],
    ["v1.7.22", false],
    ["1.7.23", true],
    ["v2.0.5", true],
    ["2.3.4+unknown", true],
  ];
  for (const [version, differ] of VERSIONS) {
    test(`containerd ${version} is given ${differ ? "a" : "no"} differ`, () => {
      const host = newHost();
      assert.equal(
        script("install.sh", ["--host", host, "--no-restart", "--no-unit", "--containerd", pretend(version)]).status,
        0,
      );
      const lines = readFileSync(join(host, "etc/containerd/conf.d/shale.toml"), "utf8");
      assert.equal(/type = "diff"/.test(lines), differ);
    });
  }

  const IMPORTS: readonly (readonly [before: string, after: readonly string[]])[] = [
    ["imports = []", ["/etc/containerd/conf.d/shale.toml"]],
    ["  imports = [ ]", ["/etc/containerd/conf.d/shale.toml"]],
    ['imports = ["/a.toml", "/b/*.toml"]', ["/a.toml", "/b/*.toml", "/etc/containerd/conf.d/shale.toml"]],
    ["imports = ['/a.toml', ]", ["/a.toml", "/etc/containerd/conf.d/shale.toml"]],
    ['imports = ["/etc/containerd/conf.d/*.toml"]', ["/etc/containerd/conf.d/*.toml"]],
  ];
  for (const [line, after] of IMPORTS) {
    test(`install.sh adds to ${line.trim()}, once, and uninstall.sh gives it back as it was`, () => {
      const text = `# ours\nversion = 2\n${line}\n[grpc]\n  gid = 7\n`;
      const host = newHost(text);
      const file = join(host, "etc/containerd/config.toml");
      const options = ["--host", host, "--no-restart", "--no-unit"];
      for (const time of [1, 2]) {
        const { status, stderr } = script("install.sh", [...options, "--containerd", pretend("1.7.27")]);
        assert.equal(status, 0, `${time}: ${stderr}`);
        const { version, imports, grpc } = parse(readFileSync(file, "utf8"));
        assert.deepEqual([version, imports, { ...(grpc as object) }], [2, after, { gid: 7 }]);
      }
      for (const time of [1, 2]) {
        assert.equal(script("uninstall.sh", options).status, 0);
        assert.equal(readFileSync(file, "utf8"), text, String(time));
      }
    });
  }

  const REFUSED: readonly (readonly [name: string, config: string | undefined, version: string, says: RegExp])[] = [
    ["a containerd that is too old", undefined, "1.5.9", /1\.5\.9 is too old/],
    ["a configuration without a version", "[grpc]\n", "1.6.20", /has no version line/],
    ["a configuration of version 1", "version = 1\n", "1.6.20", /is of version 1: 2 or later/],
    [
      "imports over several lines",
      'version = 2\nimports = [\n  "/other.toml",\n]\n',
      "1.6.20",
      /has imports of its own: add/,
    ],
  ];
  for (const [name, config, version, says] of REFUSED) {
    test(`install.sh refuses ${name}, and changes nothing`, () => {
      const host = newHost(config);
      const { status, stderr } = script("install.sh", [
        "--host",
        host,
        "--no-restart",
        "--containerd",
        pretend(version),
      ]);
      assert.equal(status, 1);
      assert.match(stderr, says);
      const names = readdirSync(join(host, "etc/containerd"));
      assert.deepEqual(names, config === undefined ? [] : ["config.toml"]);
      if (config !== undefined) assert.equal(readFileSync(join(host, "etc/containerd/config.toml"), "utf8"), config);
    });
  }

  test("uninstall.sh --purge removes a store, and nothing that is none", () => {
    const host = newHost();
    const options = ["--host", host, "--no-restart", "--purge", "--root", "/var/lib/shale"];
    mkdirSync(join(host, "var/lib/shale"), { recursive: true });
    writeFileSync(join(host, "var/lib/shale/precious"), "");
    assert.match(script("uninstall.sh", options).stderr, /\/var\/lib\/shale has no store/);
    assert.ok(existsSync(join(host, "var/lib/shale/precious")));
    writeFileSync(join(host, "var/lib/shale/shale.db"), "");
    assert.equal(script("uninstall.sh", options).status, 0);
    assert.equal(existsSync(join(host, "var/lib/shale")), false);
    assert.match(
      script("uninstall.sh", ["--host", host, "--no-restart", "--purge", "--root", "/"]).stderr,
      /no directory/,
    );
  });
});

test("the unit makes no mount namespace of its own, and starts before containerd", () => {
  const unit = readFileSync(join(CONTRIB, "systemd/shale.service"), "utf8");
  const keys = [...unit.matchAll(/^([A-Za-z]+)=(.*)$/gm)].map(([, key, value]) => `${key}=${value}`);
  for (const line of [
    "Type=notify",
    "Before=containerd.service",
    "Restart=always",
    "OOMScoreAdjust=-999",
    "Delegate=yes",
  ]) {
    assert.ok(keys.includes(line), line);
  }
  const forbidden =
    /^(Private|Protect|ReadOnly|ReadWrite|InaccessiblePaths|TemporaryFileSystem|Bind|RootDirectory|MountFlags)/;
  assert.deepEqual(
    keys.filter((line) => forbidden.test(line)),
    [],
  );
});

test("systemd has nothing to say against the unit", () => {
  const host = newHost();
  const options = ["--host", host, "--no-restart", "--shale", "/bin/true", "--containerd", pretend("2.1.9")];
  assert.equal(script("install.sh", options).status, 0);
  // An unknown key is a line of its own and no failure.
  const unit = join(host, "etc/systemd/system/shale.service");
  const { status, stdout, stderr } = spawnSync("systemd-analyze", ["verify", "--man=no", unit], { encoding: "utf8" });
  assert.deepEqual({ status, said: stdout + stderr }, { status: 0, said: "" });
});

/** Keys of what is used here, of the Kubernetes API v1.32 (apps/v1 DaemonSet and what it has in it); "*" is any. */
const SCHEMA: Readonly<Record<string, readonly string[]>> = {
  "": ["apiVersion", "kind", "metadata", "spec"],
  ".metadata": ["name", "namespace", "labels", "annotations"],
  ".metadata.labels": ["*"],
  ".spec": ["selector", "updateStrategy", "template", "minReadySeconds", "revisionHistoryLimit"],
  ".spec.selector": ["matchLabels", "matchExpressions"],
  ".spec.selector.matchLabels": ["*"],
  ".spec.updateStrategy": ["type", "rollingUpdate"],
  ".spec.updateStrategy.rollingUpdate": ["maxUnavailable", "maxSurge"],
  ".spec.template": ["metadata", "spec"],
  ".spec.template.metadata": ["labels", "annotations"],
  ".spec.template.metadata.labels": ["*"],
  ".spec.template.spec": [
    ...["serviceAccountName", "hostPID", "hostNetwork", "hostIPC", "dnsPolicy", "priorityClassName", "tolerations"],
    ...["nodeSelector", "affinity", "terminationGracePeriodSeconds", "initContainers", "containers", "volumes"],
  ],
  ".spec.template.spec.nodeSelector": ["*"],
  ".spec.template.spec.tolerations[]": ["key", "operator", "value", "effect", "tolerationSeconds"],
  ".spec.template.spec.volumes[]": ["name", "configMap", "hostPath", "secret", "emptyDir"],
  ".spec.template.spec.volumes[].configMap": ["name", "items", "defaultMode", "optional"],
  ".spec.template.spec.volumes[].hostPath": ["path", "type"],
  ...Object.fromEntries(
    ["initContainers", "containers"].flatMap((kind) => {
      const at = `.spec.template.spec.${kind}[]`;
      const probe = ["httpGet", "exec", "tcpSocket", "grpc", "initialDelaySeconds", "periodSeconds", "timeoutSeconds"];
      return [
        [
          at,
          [
            ...["name", "image", "imagePullPolicy", "command", "args", "env", "ports", "resources", "volumeMounts"],
            ...["livenessProbe", "readinessProbe", "startupProbe", "securityContext", "lifecycle", "workingDir"],
          ],
        ],
        [`${at}.securityContext`, ["privileged", "capabilities", "runAsUser", "readOnlyRootFilesystem"]],
        [`${at}.volumeMounts[]`, ["name", "mountPath", "subPath", "readOnly", "mountPropagation"]],
        [`${at}.resources`, ["requests", "limits"]],
        [`${at}.resources.requests`, ["cpu", "memory"]],
        ...["livenessProbe", "readinessProbe"].flatMap((name) => [
          [`${at}.${name}`, [...probe, "failureThreshold", "successThreshold"]],
          [`${at}.${name}.httpGet`, ["host", "port", "path", "scheme", "httpHeaders"]],
        ]),
      ];
    }),
  ),
};

/** Paths in `value` that the schema does not know. */
function unknownKeys(value: unknown, at = ""): string[] {
  if (Array.isArray(value)) return value.flatMap((one) => unknownKeys(one, `${at}[]`));
  if (typeof value !== "object" || value === null) return [];
  const known = SCHEMA[at];
  return Object.entries(value).flatMap(([key, inner]) =>
    known?.includes("*") === true || known?.includes(key) === true
      ? unknownKeys(inner, `${at}.${key}`)
      : [`${at}.${key}`],
  );
}

describe("kubernetes/", () => {
  const documents = (path: string) =>
    parseAllDocuments(readFileSync(path, "utf8")).map((document) => {
      assert.deepEqual(document.errors, [], path);
      return document.toJS() as Record<string, unknown>;
    });

  test("every file is YAML, and every resource that a kustomization names is there", () => {
    const files = globSync("kubernetes/**/*.yaml", { cwd: CONTRIB }).map((path) => join(CONTRIB, path));
    assert.ok(files.length >= 5);
    for (const path of files) {
      for (const document of documents(path)) {
        assert.equal(typeof document.kind, "string", path);
        if (document.kind !== "Kustomization") continue;
        for (const resource of document.resources as string[])
          assert.ok(existsSync(join(path, "..", resource)), resource);
      }
    }
  });

  test("the DaemonSet's mounts reach the host, and each has its volume", () => {
    const [daemonSet] = documents(join(CONTRIB, "kubernetes/base/daemonset.yaml"));
    interface Container {
      readonly volumeMounts: readonly {
        readonly name: string;
        readonly mountPath: string;
        readonly mountPropagation?: string;
      }[];
      readonly securityContext: { readonly privileged: boolean };
    }
    const { spec } = (daemonSet!.spec as { template: { spec: Record<string, unknown> } }).template;
    const [container] = spec.containers as Container[];
    const [init] = spec.initContainers as Container[];
    const volumes = new Set((spec.volumes as { readonly name: string }[]).map(({ name }) => name));
    for (const { name } of [...container!.volumeMounts, ...init!.volumeMounts]) assert.ok(volumes.has(name), name);
    const store = container!.volumeMounts.find(({ mountPath }) => mountPath === "/var/lib/shale");
    assert.equal(store?.mountPropagation, "Bidirectional");
    assert.equal(container!.securityContext.privileged, true);
  });

  test("the DaemonSet has only keys that Kubernetes knows, and selects its own pods", () => {
    const [daemonSet] = documents(join(CONTRIB, "kubernetes/base/daemonset.yaml"));
    assert.deepEqual(unknownKeys(daemonSet), []);
    assert.deepEqual(unknownKeys({ spec: { template: { spec: { hostPid: true } } } }), [".spec.template.spec.hostPid"]);
    const { selector, template } = daemonSet!.spec as {
      readonly selector: { readonly matchLabels: object };
      readonly template: { readonly metadata: { readonly labels: object } };
    };
    assert.deepEqual(template.metadata.labels, selector.matchLabels);
  });

  test("what the overlays patch is what they mean: a volume by its position", () => {
    const [daemonSet] = documents(join(CONTRIB, "kubernetes/base/daemonset.yaml"));
    interface Operation {
      readonly op: string;
      readonly path: string;
      readonly value?: string;
    }
    for (const path of globSync("kubernetes/overlays/*/kustomization.yaml", { cwd: CONTRIB })) {
      const [overlay] = documents(join(CONTRIB, path));
      for (const { patch } of overlay!.patches as readonly { readonly patch: string }[]) {
        for (const { op, path: pointer, value } of parseDocument(patch).toJS() as readonly Operation[]) {
          const steps = pointer.slice(1).split("/");
          // What JSON Patch would fail on, only at the cluster.
          const found = steps.reduce<unknown>((at, step) => (at as Record<string, unknown>)?.[step], daemonSet);
          assert.notEqual(found, undefined, `${path}: ${pointer}`);
          if (op !== "replace") continue;
          const volume = steps
            .slice(0, -2)
            .reduce<unknown>((at, step) => (at as Record<string, unknown>)[step], daemonSet);
          // "/var/lib/containerd" becomes ".../agent/containerd": the same directory of another distribution.
          assert.match(String((volume as { readonly name: string }).name), /^containerd/, pointer);
          assert.equal(value?.includes("containerd"), true, pointer);
        }
      }
    }
  });

  test("its configuration is one", () => {
    const path = join(CONTRIB, "kubernetes/base/config.toml");
    assert.equal(parseConfig(readFileSync(path, "utf8"), path).metrics.address, "127.0.0.1:9190");
  });
});
