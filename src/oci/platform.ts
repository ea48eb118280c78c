/**
 * Platforms: "os/architecture[/variant]", normalised and matched as containerd does (github.com/containerd/platforms), so
 * that both pick the same manifest of an index.
 */
import { FormatError } from "../errors/index.ts";

/** Normalised by `normalizePlatform`; values are GOOS and GOARCH names. */
export interface Platform {
  readonly os: string;
  readonly architecture: string;
  /** "v7" of arm; absent where it is the architecture's default (arm64/v8, amd64/v1). */
  readonly variant?: string;
  /** Windows build number; has no meaning on linux. */
  readonly osVersion?: string;
}

const COMPONENT = /^[A-Za-z0-9_.-]{1,64}$/;
const OPERATING_SYSTEMS: ReadonlySet<string> = new Set(
  "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows zos".split(
    " ",
  ),
);
const ARCHITECTURES: ReadonlySet<string> = new Set(
  "386 amd64 amd64p32 arm armbe arm64 arm64be loong64 mips mipsle mips64 mips64le mips64p32 mips64p32le ppc ppc64 ppc64le riscv riscv64 s390 s390x sparc sparc64 wasm".split(
    " ",
  ),
);

/** Canonical spelling: aarch64 -> arm64, x86_64 -> amd64, armhf -> arm/v7, arm64/v8 -> arm64, arm -> arm/v7. */
export function normalizePlatform(platform: Platform): Platform {
  const os = platform.os.toLowerCase();
  const [architecture, variant] = normalizeArchitecture(
    platform.architecture.toLowerCase(),
    (platform.variant ?? "").toLowerCase(),
  );
  return {
    os: os === "macos" ? "darwin" : os,
    architecture,
    ...(variant === "" ? {} : { variant }),
    ...(platform.osVersion ? { osVersion: platform.osVersion } : {}),
  };
}

function normalizeArchitecture(architecture: string, variant: string): readonly [string, string] {
  switch (architecture) {
    case "i386":
      return ["386", ""];
    case "x86_64":
    case "x86-64":
    case "amd64":
      return ["amd64", variant === "v1" ? "" : variant];
    case "aarch64":
    case "arm64":
      return ["arm64", variant === "8" || variant === "v8" ? "" : variant];
    case "armhf":
      return ["arm", "v7"];
    case "armel":
      return ["arm", "v6"];
    case "arm":
      if (variant === "") return ["arm", "v7"];
      return ["arm", /^[5-8]$/.test(variant) ? `v${variant}` : variant];
    default:
      return [architecture, variant];
  }
}

/**
 * Parses "os/architecture[/variant]", or one component that is a known os or architecture; `host` gives what is left
 * out. FormatError for anything else.
 */
export function parsePlatform(text: string, host: Platform): Platform {
  const fail = (problem: string) => new FormatError("platform", JSON.stringify(text.slice(0, 80)), problem);
  const parts = text.split("/");
  if (parts.length > 3) throw fail("has more than three components");
  for (const part of parts) {
    if (!COMPONENT.test(part)) throw fail("components are letters, digits, '.', '_' and '-'");
  }
  const [first, second, variant] = parts;
  if (second !== undefined) {
    return normalizePlatform({ os: first!, architecture: second, ...(variant === undefined ? {} : { variant }) });
  }
  const asOs = normalizePlatform({ os: first!, architecture: host.architecture, variant: host.variant ?? "" });
  if (OPERATING_SYSTEMS.has(asOs.os)) return asOs;
  const asArchitecture = normalizePlatform({ os: host.os, architecture: first! });
  if (ARCHITECTURES.has(asArchitecture.architecture)) return asArchitecture;
  throw fail("is neither a known operating system nor a known architecture");
}

export function formatPlatform(platform: Platform): string {
  const { os, architecture, variant } = normalizePlatform(platform);
  return [os, architecture, ...(variant === undefined ? [] : [variant])].map((part) => part || "unknown").join("/");
}

/** The platform members of an index entry, as image-index.md spells them. */
export function encodePlatform(platform: Platform): Record<string, string> {
  const { os, architecture, variant, osVersion } = platform;
  return {
    architecture,
    os,
    ...(variant === undefined ? {} : { variant }),
    ...(osVersion === undefined ? {} : { "os.version": osVersion }),
  };
}

/**
 * The platform that runs here, from Node's `process.arch`: a linux image, whatever this library runs on. Node tells no
 * arm variant; it needs v7 itself.
 */
export function platformOfNode(arch: string): Platform {
  const architecture = { x64: "amd64", ia32: "386", ppc64: "ppc64le", mipsel: "mipsle" }[arch] ?? arch;
  return normalizePlatform({ os: "linux", architecture });
}

/**
 * Platforms that run on `platform`, best first: arm64/v9.1 takes v9.1, v9, v8.6 ... v8, then arm/v8 ... arm/v5; arm/v7
 * takes v7, v6, v5; amd64/v3 takes v3, v2, v1; amd64 also takes 386.
 */
export function compatiblePlatforms(platform: Platform): Platform[] {
  const wanted = normalizePlatform(platform);
  const { os, osVersion, architecture } = wanted;
  const make = (arch: string, variant: string) =>
    normalizePlatform({ os, architecture: arch, variant, ...(osVersion === undefined ? {} : { osVersion }) });
  const result = [wanted];
  if (architecture === "amd64") {
    for (let v = versionOf(wanted.variant ?? "v1")[0] - 1; v >= 1; v--) result.push(make("amd64", `v${v}`));
    result.push(make("386", ""));
  } else if (architecture === "arm") {
    addArm(versionOf(wanted.variant ?? "v7")[0] - 1);
  } else if (architecture === "arm64") {
    const [major, minor] = versionOf(wanted.variant ?? "v8");
    if (major === 9) {
      addArm64(9, minor - 1);
      addArm64(8, minor + 5); // Armv9.0 was split off v8.5
    } else if (major === 8) {
      addArm64(8, minor - 1);
    }
    addArm(8);
  }
  return result;

  function addArm(from: number): void {
    for (let v = from; v >= 5; v--) result.push(make("arm", `v${v}`));
  }
  function addArm64(major: number, from: number): void {
    for (let minor = from; minor >= 0; minor--) {
      result.push(make("arm64", minor === 0 ? `v${major}` : `v${major}.${minor}`));
    }
  }
}

/** "v8.2" -> [8, 2]; [0, 0] for anything else, which then has no lower versions. */
function versionOf(variant: string): readonly [number, number] {
  const match = /^v(\d{1,2})(?:\.(\d))?$/.exec(variant);
  return match ? [Number(match[1]), Number(match[2] ?? 0)] : [0, 0];
}

/** Whether an image for `offered` is one for exactly `wanted`. The os version counts on windows only, as a prefix. */
export function platformsEqual(wanted: Platform, offered: Platform): boolean {
  const a = normalizePlatform(wanted);
  const b = normalizePlatform(offered);
  if (a.os !== b.os || a.architecture !== b.architecture || a.variant !== b.variant) return false;
  return a.os !== "windows" || a.osVersion === undefined || (b.osVersion ?? "").startsWith(a.osVersion);
}

/** Position of `offered` among the platforms that run on `wanted` (0 is best), or undefined when it does not run. */
export function findPlatformRank(wanted: Platform, offered: Platform): number | undefined {
  const rank = compatiblePlatforms(wanted).findIndex((one) => platformsEqual(one, offered));
  return rank < 0 ? undefined : rank;
}
