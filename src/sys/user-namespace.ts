/** User namespaces as carriers of id mappings, for idmapped mounts: mount_setattr(2) takes the mapping from one. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as fs from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { closeFile } from "./files.ts";

/** `length` ids from `inside` on are those from `outside` on to the host; user_namespaces(7), uid_map. */
export interface IdRange {
  readonly inside: number;
  readonly outside: number;
  readonly length: number;
}

export interface UserNamespace extends Disposable {
  /** Open until it is disposed of; the namespace lives as long as this, or a mount that has its mapping. */
  readonly fd: number;
}

const START_TIMEOUT_MS = 5000;

/**
 * Makes a user namespace with these mappings; no process stays in it. Needs CAP_SYS_ADMIN, and unshare(1) of util-linux,
 * since a process with threads can't go into a new one. FAILED_PRECONDITION where the kernel refuses it or the mapping.
 */
export async function createUserNamespace(uids: readonly IdRange[], gids: readonly IdRange[]): Promise<UserNamespace> {
  const act = "Cannot make a user namespace";
  const child = spawn("unshare", ["--user", "cat"], { stdio: ["pipe", "ignore", "pipe"] });
  const ended = once(child, "close").catch((error: unknown) => [error]);
  let said = "";
  child.stderr.on("data", (chunk: Buffer) => {
    said = `${said}${chunk}`.slice(0, 1000);
  });
  try {
    const [failed] = await Promise.race([
      once(child, "spawn").then(() => [undefined]),
      once(child, "error") as Promise<[Error]>,
    ]);
    if (failed !== undefined) throw failed;
    const own = fs.readlinkSync("/proc/self/ns/user");
    const place = `/proc/${child.pid}`;
    for (const deadline = performance.now() + START_TIMEOUT_MS; fs.readlinkSync(`${place}/ns/user`) === own; ) {
      if (child.exitCode !== null || performance.now() > deadline) {
        throw new ShaleError("FAILED_PRECONDITION", `${act}: ${said.trim() || "unshare(1) made none"}`, {
          hint: "The kernel may forbid them: see /proc/sys/user/max_user_namespaces",
        });
      }
      await sleep(1);
    }
    fs.writeFileSync(`${place}/uid_map`, mapText(uids));
    fs.writeFileSync(`${place}/gid_map`, mapText(gids));
    const fd = fs.openSync(`${place}/ns/user`, fs.constants.O_RDONLY);
    return { fd, [Symbol.dispose]: () => closeFile(fd) };
  } catch (error) {
    if (ShaleError.is(error)) throw error;
    const why = errnoOf(error) === undefined ? "" : `: ${said.trim() || (error as Error).message}`;
    throw new ShaleError("FAILED_PRECONDITION", `${act}${why}`, { cause: error });
  } finally {
    child.stdin.end(); // cat ends with its input
    child.kill("SIGKILL");
    await ended;
  }
}

function mapText(ranges: readonly IdRange[]): string {
  return ranges.map(({ inside, outside, length }) => `${inside} ${outside} ${length}\n`).join("");
}
