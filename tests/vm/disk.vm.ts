/**
 * A real kernel opens exported disks through dm-verity with the very commands that `shale export` prints, mounts them, reads files,
 * and refuses what a flipped bit has changed. Run by `npm run test:vm`; takes about ten seconds with KVM, some minutes without.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { exportDisk, kernelCommandLine, type Sidecar, veritysetupOpen } from "../../src/export/index.ts";
import { noise, openStoreWithImage, writeLayout } from "../export/image.ts";
import { missingForGuest, runInGuest } from "./guest.ts";

/** Content of opt/big in the image. */
const BIG = noise(3_000_000, 6);

test("a guest opens, mounts and reads verified disks, and gets EIO for a flipped bit", {
  skip: missingForGuest(),
}, async () => {
  const scratch = mkdtempSync(join(tmpdir(), "shale-vm-"));
  try {
    await writeLayout(join(scratch, "layout"));
    const { store, manifest } = await openStoreWithImage(join(scratch, "store"), join(scratch, "layout"));
    const sidecars: Sidecar[] = [];
    const disks = ["superblock", "flipped", "bare"].map((name) => join(scratch, name));
    try {
      using operation = store.begin("test in a guest");
      for (const [number, path] of disks.entries()) {
        const verity = number === 2 ? "bare" : "superblock";
        const { sidecar } = await exportDisk(operation, { manifest, layer: undefined }, path, { verity });
        sidecars.push(sidecar);
      }
    } finally {
      await store.close();
    }
    flipBit(disks[1]!);
    const console = await runInGuest(scratch, disks, guestScript(sidecars));
    const said = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(console)?.[1];
    const sha256 = createHash("sha256").update(BIG).digest("hex");
    assert.equal(said("sound"), sha256, console);
    assert.equal(said("bare"), sha256, console);
    assert.equal(said("other-root"), "refused", console);
    assert.match(said("flipped") ?? "", /Input\/output error/, console);
    // What the flipped bit is not in can still be read.
    assert.equal(said("elsewhere"), "127.0.0.1 other", console);
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
});

function flipBit(path: string): void {
  const bytes = readFileSync(path);
  const at = bytes.indexOf(BIG.subarray(0, 64));
  assert.ok(at > 0 && at % 4096 === 0);
  bytes[at + 1_500_000]! ^= 0x10;
  writeFileSync(path, bytes);
}

function guestScript([sound, flipped, bare]: readonly Sidecar[]): string {
  const { rootHash } = sound!.verity!;
  const wrong = rootHash.replace(/^./, (digit) => (digit === "0" ? "1" : "0"));
  const table = /dm-mod\.create="[^,]*,,,ro,([^"]+)"/.exec(kernelCommandLine(bare!.verity!, "bare", "erofs"))![1]!;
  return `
echo
${veritysetupOpen("/dev/vda", "sound", sound!.verity!)}
mount -t erofs -o ro /dev/mapper/sound /mnt
echo "sound=$(sha256sum /mnt/opt/big | cut -d' ' -f1)"
umount /mnt
veritysetup close sound
${veritysetupOpen("/dev/vda", "other", { ...sound!.verity!, rootHash: wrong })} && mount -t erofs -o ro /dev/mapper/other /mnt \\
  && echo "other-root=accepted" || echo "other-root=refused"
${veritysetupOpen("/dev/vdb", "flipped", flipped!.verity!)}
mount -t erofs -o ro /dev/mapper/flipped /mnt
echo "flipped=$(cat /mnt/opt/big 2>&1 >/dev/null)"
echo "elsewhere=$(cat /mnt/etc/hosts)"
umount /mnt
dmsetup create bare --readonly --table "${table.replaceAll("/dev/vda", "/dev/vdc")}"
mount -t erofs -o ro /dev/mapper/bare /mnt
echo "bare=$(sha256sum /mnt/opt/big | cut -d' ' -f1)"
`;
}
