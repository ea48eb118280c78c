import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError } from "../errors/index.ts";
import { compatiblePlatforms, findPlatformRank, formatPlatform, parsePlatform, platformOfNode } from "./index.ts";

const HOST = platformOfNode("x64");

test("parsePlatform() normalises as containerd does", () => {
  const cases: readonly (readonly [string, string])[] = [
    ["linux/amd64", "linux/amd64"],
    ["linux/x86_64", "linux/amd64"],
    ["linux/amd64/v1", "linux/amd64"],
    ["linux/amd64/v3", "linux/amd64/v3"],
    ["linux/aarch64", "linux/arm64"],
    ["linux/arm64/v8", "linux/arm64"],
    ["linux/arm64/8", "linux/arm64"],
    ["linux/arm64/v8.2", "linux/arm64/v8.2"],
    ["linux/armhf", "linux/arm/v7"],
    ["linux/armel", "linux/arm/v6"],
    ["linux/arm", "linux/arm/v7"],
    ["linux/arm/6", "linux/arm/v6"],
    ["linux/i386", "linux/386"],
    ["Linux/ARM64", "linux/arm64"],
    ["macos/arm64", "darwin/arm64"],
    ["linux", "linux/amd64"],
    ["arm64", "linux/arm64"],
    ["armhf", "linux/arm/v7"],
    ["riscv64", "linux/riscv64"],
    ["linux/ppc64le", "linux/ppc64le"],
  ];
  for (const [text, canonical] of cases) assert.equal(formatPlatform(parsePlatform(text, HOST)), canonical, text);
});

test("parsePlatform() rejects the rest", () => {
  for (const text of ["", "/", "linux/", "linux/arm/v7/x", "toaster", "linux/a b", "linux/\u00e9", "x".repeat(70)]) {
    assert.throws(() => parsePlatform(text, HOST), FormatError, text);
  }
});

test("platformOfNode() maps process.arch", () => {
  const cases = { x64: "amd64", arm64: "arm64", arm: "arm/v7", ia32: "386", ppc64: "ppc64le", s390x: "s390x" };
  for (const [arch, name] of Object.entries(cases)) assert.equal(formatPlatform(platformOfNode(arch)), `linux/${name}`);
});

test("compatiblePlatforms() lists what runs, best first", () => {
  const cases: readonly (readonly [string, string])[] = [
    ["linux/amd64", "linux/amd64 linux/386"],
    ["linux/amd64/v3", "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386"],
    ["linux/arm/v7", "linux/arm/v7 linux/arm/v6 linux/arm/v5"],
    ["linux/arm/v8", "linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"],
    ["linux/arm/v5", "linux/arm/v5"],
    ["linux/arm64", "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"],
    [
      "linux/arm64/v8.2",
      "linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
    ],
    [
      "linux/arm64/v9",
      "linux/arm64/v9 linux/arm64/v8.5 linux/arm64/v8.4 linux/arm64/v8.3 linux/arm64/v8.2 linux/arm64/v8.1 linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5",
    ],
    ["linux/s390x", "linux/s390x"],
    ["linux/arm/v99999", "linux/arm/v99999"],
  ];
  for (const [text, list] of cases) {
    assert.equal(compatiblePlatforms(parsePlatform(text, HOST)).map(formatPlatform).join(" "), list, text);
  }
});

test("findPlatformRank() ignores the os version on linux and compares it as a prefix on windows", () => {
  const linux = { os: "linux", architecture: "amd64" };
  assert.equal(findPlatformRank({ ...linux, osVersion: "5" }, { ...linux, osVersion: "6" }), 0);
  const windows = { os: "windows", architecture: "amd64", osVersion: "10.0.17763" };
  assert.equal(findPlatformRank(windows, { ...windows, osVersion: "10.0.17763.1234" }), 0);
  assert.equal(findPlatformRank(windows, { ...windows, osVersion: "10.0.20348" }), undefined);
  assert.equal(findPlatformRank(linux, windows), undefined);
});
