/** Loop devices: a file as a block device, where the kernel or the file system cannot mount the file itself. */
import * as fs from "node:fs";
import { bytesOf, fromUtf8, struct, text, u32le, u64le } from "../bytes/index.ts";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { closeFile } from "./files.ts";
import { ioctl, ioctlNumber } from "./libc.ts";

/** struct loop_config with its struct loop_info64 at 8, linux/loop.h; 304 bytes. */
const LOOP_CONFIG = struct("loop_config", 304, {
  fd: u32le(0),
  blockSize: u32le(4),
  offset: u64le(32),
  sizeLimit: u64le(40),
  flags: u32le(60),
  fileName: text(64, 64),
});
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_DIRECT_IO = 16;
const LOOP_CONFIGURE = 0x4c0a; // Linux 5.8
const LOOP_CTL_GET_FREE = 0x4c82;
/** Another process may take the number between the two calls; that many losses in a row mean something else is wrong. */
const ATTEMPTS = 64;

export interface LoopOptions {
  readonly readOnly?: boolean;
  /** Do not cache the file's pages a second time; without effect where the file system can't. */
  readonly directIo?: boolean;
}

export interface LoopDevice extends Disposable {
  /** "/dev/loop7". */
  readonly path: string;
  /** Lets go of the device. It disappears by itself with its last user: this handle, or a mount made meanwhile. */
  close(): void;
}

/** Attaches a file to a free loop device. FAILED_PRECONDITION where there are none (containers); needs CAP_SYS_ADMIN. */
export function attachLoop(file: string, options: LoopOptions = {}): LoopDevice {
  const readOnly = options.readOnly ?? true;
  const backing = fs.openSync(file, readOnly ? "r" : "r+");
  let control: number | undefined;
  try {
    control = fs.openSync("/dev/loop-control", "r+");
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const path = `/dev/loop${ioctlNumber(control, LOOP_CTL_GET_FREE, 0, "ioctl(LOOP_CTL_GET_FREE)")}`;
      const device = fs.openSync(path, readOnly ? "r" : "r+");
      if (configure(device, backing, file, options)) return handle(path, device);
      closeFile(device);
    }
  } catch (error) {
    if (!["ENOENT", "ENXIO", "ENODEV", "EACCES", "EPERM"].includes(errnoOf(error) ?? "")) throw error;
    throw new ShaleError("FAILED_PRECONDITION", `Cannot attach ${file} to a loop device: ${(error as Error).message}`, {
      cause: error,
      hint: "Run as root on the host, where /dev/loop-control is, or keep the store on ext4, XFS or btrfs with Linux 6.12",
    });
  } finally {
    closeFile(backing);
    if (control !== undefined) closeFile(control);
  }
  throw new ShaleError(
    "UNAVAILABLE",
    `Cannot attach ${file} to a loop device: lost the race for one ${ATTEMPTS} times`,
  );
}

/** False when another process has just taken the device; closes it on any other error. */
function configure(device: number, backing: number, file: string, options: LoopOptions): boolean {
  const config = new Uint8Array(LOOP_CONFIG.size);
  const flags =
    LO_FLAGS_AUTOCLEAR |
    ((options.readOnly ?? true) ? LO_FLAGS_READ_ONLY : 0) |
    (options.directIo ? LO_FLAGS_DIRECT_IO : 0);
  const fileName = Buffer.from(bytesOf(fromUtf8(file)).subarray(0, 63)).toString("latin1"); // for losetup's listing only
  LOOP_CONFIG.write(config, 0, { fd: backing, flags, fileName });
  try {
    ioctl(device, LOOP_CONFIGURE, config, "ioctl(LOOP_CONFIGURE)", file);
    return true;
  } catch (error) {
    if (errnoOf(error) === "EBUSY") return false;
    closeFile(device);
    throw error;
  }
}

function handle(path: string, device: number): LoopDevice {
  let open = true;
  return {
    path,
    close() {
      if (open) closeFile(device);
      open = false;
    },
    [Symbol.dispose]() {
      this.close();
    },
  };
}
