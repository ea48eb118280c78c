/** The commands that open and mount what was exported, ready to be pasted. Pure. */
import { basename } from "node:path";
import type { TarfsExport } from "./tarfs.ts";
import type { Sidecar } from "./sidecar.ts";
import type { VerityInfo } from "./verity-image.ts";

const SECTOR_SIZE = 512;

export interface Instruction {
  readonly title: string;
  readonly command: string;
}

export function diskInstructions(path: string, sidecar: Sidecar): Instruction[] {
  const disk = shellQuote(path);
  const { verity } = sidecar;
  const fileSystem = sidecar.fileSystem.type;
  if (verity === undefined) return [{ title: "Mount", command: `mount -t ${fileSystem} -o loop,ro ${disk} /mnt` }];
  const name = deviceName(path);
  return [
    { title: "Open, checked by the kernel from then on", command: veritysetupOpen(path, name, verity) },
    { title: "Mount", command: `mount -t ${fileSystem} -o ro /dev/mapper/${name} /mnt` },
    { title: "Unmount and close", command: `umount /mnt && veritysetup close ${name}` },
    {
      title: "Kernel command line, as root file system on /dev/vda",
      command: kernelCommandLine(verity, name, fileSystem),
    },
    { title: "Check all of it without root", command: `shale verify ${disk} --root-hash ${verity.rootHash}` },
  ];
}

export function veritysetupOpen(path: string, name: string, verity: VerityInfo): string {
  const disk = shellQuote(path);
  const common = `veritysetup open ${disk} ${name} ${disk}`;
  if (verity.superblock) return `${common} --hash-offset=${verity.hashOffset} ${verity.rootHash}`;
  const options = [
    "--no-superblock",
    `--format=${verity.hashFormat}`,
    `--hash=${verity.algorithm}`,
    `--salt=${verity.salt === "" ? "-" : verity.salt}`,
    `--data-block-size=${verity.dataBlockSize}`,
    `--hash-block-size=${verity.hashBlockSize}`,
    `--data-blocks=${verity.dataBlocks}`,
    `--hash-offset=${verity.hashOffset}`,
  ];
  return `${common} ${options.join(" ")} ${verity.rootHash}`;
}

/** The table of device-mapper, Documentation/admin-guide/device-mapper/verity.rst. */
export function verityTable(verity: VerityInfo, device: string): string {
  const { hashFormat, dataBlockSize, hashBlockSize, dataBlocks, treeOffset, algorithm, rootHash, salt } = verity;
  const words = [0, (dataBlocks * dataBlockSize) / SECTOR_SIZE, "verity", hashFormat, device, device, dataBlockSize];
  words.push(hashBlockSize, dataBlocks, treeOffset / hashBlockSize, algorithm, rootHash, salt === "" ? "-" : salt);
  return words.join(" ");
}

/** For kernels with CONFIG_DM_INIT and dm-verity built in, Documentation/admin-guide/device-mapper/dm-init.rst. */
export function kernelCommandLine(verity: VerityInfo, name: string, fileSystem: string): string {
  const create = `dm-mod.create="${name},,,ro,${verityTable(verity, "/dev/vda")}"`;
  return `${create} root=/dev/dm-0 rootfstype=${fileSystem} ro`;
}

export function tarfsInstructions({ boot, devices }: TarfsExport): Instruction[] {
  const options = devices.map((device) => `device=${device}`).join(",");
  const loops = devices.map((device, i) => `d${i}=$(losetup --find --show --read-only ${shellQuote(device)})`);
  const loopOptions = devices.map((_, i) => `device=$d${i}`).join(",");
  return [
    {
      title: "Mount from files (Linux 6.12, util-linux 2.42)",
      command: `mount -t erofs -o ${shellQuote(`ro,${options}`)} ${shellQuote(boot)} /mnt`,
    },
    {
      title: "Mount from loop devices (Linux 6.4)",
      command: [...loops, `mount -t erofs -o "ro,loop,${loopOptions}" ${shellQuote(boot)} /mnt`].join("\n"),
    },
  ];
}

/** A name that device-mapper and a shell take as it is. */
function deviceName(path: string): string {
  const name = basename(path).replace(/[^A-Za-z0-9._-]/g, "_");
  return `shale-${name}`.slice(0, 64);
}

function shellQuote(text: string): string {
  return /^[A-Za-z0-9@%_+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}
