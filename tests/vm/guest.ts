/**
 * A virtual machine for one script: Debian's kernel (package linux-image-amd64), and an initramfs made of busybox, the modules and
 * programs that the script needs. KVM where it is, emulation elsewhere.
 */
import { spawnSync } from "node:child_process";
import {
  accessSync,
  chmodSync,
  constants,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";
import { ShaleError } from "../../src/errors/index.ts";
import { run, which } from "../../src/sys/index.ts";

const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
const QEMU = "qemu-system-x86_64";
const MODULES = ["virtio_pci", "virtio_blk", "dm-mod", "dm-verity", "sha256_generic", "erofs"];
const PROGRAMS = ["veritysetup", "dmsetup"];
const BOOT_TIMEOUT_MS = 240_000;
/** With KVM it takes three seconds. */
const KVM_TIMEOUT_MS = 20_000;

/** Why no machine can be started here, or false. */
export function missingForGuest(): string | false {
  const missing = [QEMU, "busybox", "cpio", "modprobe", ...PROGRAMS].filter((name) => which(name, PATH) === undefined);
  if (kernel() === undefined) missing.push("a kernel of linux-image-amd64 in /boot");
  return missing.length > 0 && `needs ${missing.join(", ")}`;
}

function kernel(): { readonly version: string; readonly image: string } | undefined {
  const versions = readdirSync("/boot")
    .filter((name) => name.startsWith("vmlinuz-"))
    .map((name) => name.slice("vmlinuz-".length))
    .sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const version = versions.at(-1);
  return version === undefined ? undefined : { version, image: `/boot/vmlinuz-${version}` };
}

/** Runs a shell script in a machine whose disks are /dev/vda, /dev/vdb ... and answers all that its console said. */
export async function runInGuest(scratch: string, disks: readonly string[], script: string): Promise<string> {
  const { version, image } = kernel()!;
  const initramfs = join(scratch, "initramfs");
  buildInitramfs(join(scratch, "root"), initramfs, version, script);
  const words = ["-m", "512", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"];
  words.push("-kernel", image, "-initrd", initramfs, "-append", "console=ttyS0 panic=-1 quiet loglevel=3");
  for (const disk of disks) words.push("-drive", `file=${disk},format=raw,if=virtio,readonly=on`);
  if (canUse("/dev/kvm")) {
    try {
      return await boot(["-accel", "kvm", "-cpu", "host", ...words], KVM_TIMEOUT_MS);
    } catch (error) {
      // Where KVM is itself in a virtual machine, it may be there and hang, or QEMU may not know the host's processor and abort.
      if (!ShaleError.is(error, "UNAVAILABLE")) throw error;
    }
  }
  return await boot(["-accel", "tcg", "-cpu", "max", ...words], BOOT_TIMEOUT_MS);
}

async function boot(words: readonly string[], timeoutMs: number): Promise<string> {
  const { code, stdout, stderr } = await run(QEMU, words, { timeoutMs, input: "" });
  if (code === undefined) throw new ShaleError("UNAVAILABLE", `Cannot run ${QEMU}: it aborted: ${stderr.toString()}`);
  if (code !== 0) throw new Error(`${QEMU} ended with ${code}: ${stderr.toString()}`);
  return stdout.toString("latin1").replaceAll("\r", "");
}

function canUse(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false; // absent, or not ours: either way not to be used
  }
}

function buildInitramfs(root: string, target: string, version: string, script: string): void {
  for (const name of ["bin", "proc", "sys", "dev", "mnt", "run", "modules"])
    mkdirSync(join(root, name), { recursive: true });
  copyFileSync(which("busybox", PATH)!, join(root, "bin/busybox"));
  for (const program of PROGRAMS) copyProgram(which(program, PATH)!, root);
  const modules = moduleFiles(version);
  for (const [number, file] of modules.entries()) copyFileSync(file, join(root, "modules", `${number}.ko`));
  const lines = [
    "#!/bin/busybox sh",
    "export PATH=/bin DM_DISABLE_UDEV=1",
    "/bin/busybox --install -s /bin",
    "mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev",
    ...modules.map((_, number) => `insmod /modules/${number}.ko`),
    script,
    "poweroff -f",
  ];
  writeFileSync(join(root, "init"), `${lines.join("\n")}\n`);
  chmodSync(join(root, "init"), 0o755);
  const archive = spawnSync("sh", ["-c", 'find . | cpio -o -H newc --quiet > "$0"', target], {
    cwd: root,
    encoding: "utf8",
  });
  if (archive.status !== 0) throw new Error(`cpio failed: ${archive.stderr}`);
}

/** In the order of loading. */
function moduleFiles(version: string): string[] {
  const words = ["-a", "-S", version, "--show-depends", ...MODULES];
  const { status, stdout, stderr } = spawnSync("modprobe", words, { encoding: "utf8", env: { ...process.env, PATH } });
  if (status !== 0) throw new Error(`modprobe failed: ${stderr}`);
  const files = stdout.split("\n").map((line) => /^insmod (\S+\.ko)/.exec(line)?.[1]);
  return [...new Set(files.filter((file) => file !== undefined))];
}

function copyProgram(path: string, root: string): void {
  copyFileSync(path, join(root, "bin", basename(path)));
  const { stdout } = spawnSync("ldd", [path], { encoding: "utf8" });
  for (const [, library] of stdout.matchAll(/(\/\S+)\s+\(0x/g)) {
    mkdirSync(join(root, dirname(library!)), { recursive: true });
    writeFileSync(join(root, library!), readFileSync(library!));
    chmodSync(join(root, library!), 0o755);
  }
}
