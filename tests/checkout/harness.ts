/** Running the driver, and mounting what a checkout is compared with. */
import { type ChildProcess, spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import type { CheckoutOptions, CheckoutResult } from "../../src/checkout/index.ts";
import { findImage } from "../../src/images/find.ts";
import type { Store } from "../../src/store/index.ts";
import { mountErofs } from "../../src/sys/index.ts";
import { unmountBelow } from "../../src/sys/testing/filesystems.ts";
import { type DescribeOptions, type Description, describeTree, TAG } from "./image.ts";

const DRIVER = join(import.meta.dirname, "driver.ts");

export interface DriverEnd {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** Or the message of the error that it printed. */
  readonly stderr: string;
  /** What it printed. */
  readonly result:
    | (CheckoutResult & { readonly code?: undefined })
    | { readonly code: string; readonly message: string }
    | undefined;
}

export interface DriverOptions {
  readonly root: string;
  readonly layout: string;
  readonly target: string;
  readonly tag?: string;
  readonly options?: Omit<CheckoutOptions, "signal" | "onProgress">;
  readonly env?: Readonly<Record<string, string>>;
  /** Runs it as this user and group. */
  readonly as?: number;
  /** Called once it runs. */
  readonly onStart?: (child: ChildProcess) => void;
}

/** Resolves when the driver has ended, however. */
export function runDriver({
  root,
  layout,
  target,
  tag = TAG,
  options,
  env,
  as,
  onStart,
}: DriverOptions): Promise<DriverEnd> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [DRIVER, root, layout, tag, target, JSON.stringify(options ?? {})], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "pipe", "pipe"],
      ...(as === undefined ? {} : { uid: as, gid: as }),
    });
    onStart?.(child);
    let stdout = "";
    let stderr = "";
    child.stdout.on("data", (chunk: Buffer) => {
      stdout += chunk.toString();
    });
    child.stderr.on("data", (chunk: Buffer) => {
      stderr += chunk.toString();
    });
    child.on("error", reject);
    child.on("close", (code, signal) => {
      const result = stdout === "" ? undefined : JSON.parse(stdout);
      resolve({ code, signal, stderr: result?.message ?? stderr, result });
    });
  });
}

/** The image as the kernel's EROFS shows it. */
export function describeMounted(store: Store, scratch: string, options: DescribeOptions = {}): Description {
  const place = join(scratch, "erofs");
  mkdirSync(place, { recursive: true });
  using operation = store.begin("mount");
  const { image, devices } = operation.mergedFiles(findImage(store, TAG).manifest.layers.map(({ diffId }) => diffId));
  mountErofs({ source: image, devices, target: place });
  try {
    return describeTree(place, options);
  } finally {
    unmountBelow(place);
  }
}
