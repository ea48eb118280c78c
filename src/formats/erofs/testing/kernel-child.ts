/** Runs in a mount namespace of its own: see `kernel.ts`. Prints Descriptions as JSON, one byte a character. */
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { type ByteString, bytesOf } from "../../../bytes/index.ts";
import * as libc from "../../../sys/libc.ts";
import { mountErofs, mountOverlay } from "../../../sys/mounts.ts";
import { FileType } from "../../layer-index/index.ts";
import { decodeDevice } from "../format.ts";
import type { KernelRequest } from "./kernel.ts";
import { type Description, describeXattrs, digestOf } from "./trees.ts";

const request = JSON.parse(readFileSync(process.argv[2]!, "utf8")) as KernelRequest;
const output = Buffer.from(JSON.stringify(request.map(mountStack).map(describe)), "latin1");
for (let done = 0; done < output.length; ) done += writeSync(1, output, done);

function mountStack({ directory, images }: KernelRequest[number]): string {
  const layers = images.map(({ source, devices }, i) => {
    const target = join(directory, `m${i}`);
    mkdirSync(target);
    mountErofs({ source, devices, target });
    return target;
  });
  if (layers.length === 1) return layers[0]!;
  const target = join(directory, "o");
  mkdirSync(target);
  mountOverlay({ lower: layers.reverse(), target });
  return target;
}

function describe(top: string): Description {
  const result: Description = {};
  const first = new Map<string, ByteString>();
  const visit = (path: ByteString) => {
    const full = Buffer.concat([Buffer.from(path === "" ? top : `${top}/`), bytesOf(path)]);
    const stat = lstatSync(full, { bigint: true });
    const mode = Number(stat.mode);
    const type = mode & FileType.MASK;
    const identity = `${stat.dev}:${stat.ino}`; // overlayfs gives each of its layers a device number
    if (!first.has(identity)) first.set(identity, path);
    const content =
      type === FileType.SYMLINK
        ? readlinkSync(full, "buffer")
        : type === FileType.REGULAR
          ? readFileSync(full)
          : Buffer.alloc(0);
    const { major, minor } = decodeDevice(Number(stat.rdev));
    result[path] = {
      mode: mode.toString(8),
      owner: `${stat.uid}:${stat.gid}`,
      mtime: String(stat.mtimeNs),
      links: Number(stat.nlink),
      size: type === FileType.DIRECTORY ? 0 : Number(stat.size),
      rdev: `${major}:${minor}`,
      content: digestOf(content),
      xattrs: describeXattrs(
        libc.listXattrs(full).map((name) => ({ name, value: libc.getXattr(full, name).toString("latin1") })),
      ),
      sameAs: first.get(identity)!,
    };
    if (type !== FileType.DIRECTORY) return;
    const names = readdirSync(full, "buffer").map((name) => name.toString("latin1"));
    for (const name of names.sort((a, b) => (a < b ? -1 : 1))) visit(path === "" ? name : `${path}/${name}`);
  };
  visit("");
  return result;
}
