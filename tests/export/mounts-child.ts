/** Runs in a mount namespace of its own: see `mounts.ts`. */
import { createHash } from "node:crypto";
import { lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { mountErofs, mountOverlay, readXattrs, run } from "../../src/sys/index.ts";
import type { Description, Plan } from "./mounts.ts";

const top = process.argv[2]!;
const plans = JSON.parse(readFileSync(join(top, "plans"), "utf8")) as readonly Plan[];
let count = 0;
const descriptions: Description[] = [];
for (const plan of plans) descriptions.push(describe(await mount(plan)));
const output = Buffer.from(JSON.stringify(descriptions));
for (let done = 0; done < output.length; ) done += writeSync(1, output, done);

async function mount(plan: Plan): Promise<string> {
  const target = join(top, `m${count++}`);
  mkdirSync(target);
  switch (plan.kind) {
    case "erofs":
      mountErofs({ source: plan.source, devices: plan.devices ?? [], backing: plan.backing ?? "auto", target });
      break;
    case "overlay": {
      const layers: string[] = [];
      for (const layer of plan.layers) layers.push(await mount(layer));
      mountOverlay({ lower: layers.reverse(), target });
      break;
    }
    case "composefs": {
      const lower = await mount({ kind: "erofs", source: plan.image });
      const options = { "datadir+": plan.objects, metacopy: "on", redirect_dir: "on" };
      mountOverlay({ lower: [lower], options, target });
      break;
    }
    case "ext4": {
      const { code, stderr } = await run("mount", ["-t", "ext4", "-o", "loop,ro", plan.source, target]);
      if (code !== 0) throw new Error(stderr.toString());
    }
  }
  return target;
}

function describe(root: string): Description {
  const result: Record<string, string> = {};
  const first = new Map<string, string>();
  const visit = (path: string) => {
    const full = path === "" ? root : `${root}/${path}`;
    const stat = lstatSync(full, { bigint: true });
    const identity = `${stat.dev}:${stat.ino}`;
    if (!first.has(identity)) first.set(identity, path);
    const content = stat.isSymbolicLink() ? readlinkSync(full, "buffer") : stat.isFile() ? readFileSync(full) : "";
    const xattrs = stat.isFile() || stat.isDirectory() ? readXattrs(full) : [];
    result[path] = [
      `mode=${stat.mode.toString(8)} owner=${stat.uid}:${stat.gid} mtime=${stat.mtimeNs} links=${stat.nlink}`,
      `size=${stat.isDirectory() ? 0 : stat.size} rdev=${stat.rdev} same=${first.get(identity)}`,
      `sha256=${createHash("sha256").update(content).digest("hex")} xattrs=${JSON.stringify(xattrs)}`,
    ].join(" ");
    if (stat.isDirectory()) for (const name of readdirSync(full).sort()) visit(path === "" ? name : `${path}/${name}`);
  };
  visit("");
  return result;
}
