import { ShaleError } from "../../src/errors/index.ts";
import { PEERS_SCRIPT } from "../peer-tree.ts";
import { run } from "../process.ts";

/** Package versions of programs in the sid tree, from dpkg: the programs themselves answer in many ways. */
export async function peerVersion(...programs: readonly string[]): Promise<string> {
  const versions: string[] = [];
  for (const program of programs) {
    // dpkg knows merged-usr files by either name.
    const owner = await run([PEERS_SCRIPT, "run", "dpkg", "-S", `*bin/${program}`]);
    const name = owner.split(":")[0];
    if (!name) throw new ShaleError("NOT_FOUND", `Cannot tell the version of ${program}: no package owns it`);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: dpkg-query expands it
    versions.push(await run([PEERS_SCRIPT, "run", "dpkg-query", "-W", "-f=${Package} ${Version}", name]));
  }
  return versions.join(", ");
}
