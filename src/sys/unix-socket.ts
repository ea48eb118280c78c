/**
 * Listening on a unix socket as a daemon should: mode 0600 from its first moment, complete when its name appears, and never taken
 * from a process that answers on it.
 */
import { connect, type Server } from "node:net";
import { dirname } from "node:path";
import { errnoOf, ShaleError } from "../errors/index.ts";
import { ensureDirectory, findFile, rename, unlink } from "./files.ts";

export interface UnixSocket {
  /** Removes the name, unless a successor has put its own socket there. */
  release(): void;
}

/** sun_path of unix(7) has 108 bytes; some are for the temporary name. */
const PATH_LIMIT = 95;

/**
 * Lets `server` listen at `path`. Its directory is made (0755) if only that is missing. What was there before is replaced if it is a
 * socket on which nobody answers: such a one is a leftover, whatever its age. FAILED_PRECONDITION when somebody answers, or when the
 * name is that of something else; PERMISSION_DENIED, INVALID_ARGUMENT for a path that can't be one.
 */
export async function bindUnixSocket(server: Server, path: string): Promise<UnixSocket> {
  const act = `Cannot listen on ${path}`;
  if (!path.startsWith("/") || Buffer.byteLength(path) > PATH_LIMIT) {
    throw new ShaleError("INVALID_ARGUMENT", `${act}: a socket's path is absolute and has up to ${PATH_LIMIT} bytes`);
  }
  const temporary = `${path}.${process.pid}`;
  try {
    ensureDirectory(dirname(path), 0o755);
    await refuseLive(act, path);
    unlink(temporary); // of a process that died while it bound, and had our pid
    await bind(server, temporary);
    rename(temporary, path);
  } catch (error) {
    const errno = errnoOf(error) ?? "";
    if (["EACCES", "EPERM", "EROFS"].includes(errno)) {
      throw new ShaleError("PERMISSION_DENIED", `${act}: this user may not`, { cause: error });
    }
    if (errno === "ENOENT" || errno === "ENOTDIR") {
      throw new ShaleError("NOT_FOUND", `${act}: its directory is missing`, { cause: error });
    }
    throw error;
  }
  const { ino } = findFile(path)!;
  return {
    release() {
      if (findFile(path)?.ino === ino) unlink(path);
    },
  };
}

/** Whether somebody accepts connections at `path`. False when nothing is there. */
export function answersAt(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const probe = connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", (error) => {
      if (["ECONNREFUSED", "ENOENT"].includes(errnoOf(error) ?? "")) resolve(false);
      else reject(error);
    });
  });
}

async function refuseLive(act: string, path: string): Promise<void> {
  const there = findFile(path);
  if (there === undefined) return;
  if (there.kind !== "other") {
    throw new ShaleError("FAILED_PRECONDITION", `${act}: a ${there.kind} has that name`, {
      hint: "Choose another address",
    });
  }
  if (await answersAt(path)) {
    throw new ShaleError("FAILED_PRECONDITION", `${act}: another process serves it`, {
      hint: "Stop that one, or choose another address and another root",
    });
  }
}

function bind(server: Server, path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", reject);
    // bind(2) takes the mode from the umask and happens before listen() returns: there is no moment with another mode.
    const before = process.umask(0o177);
    try {
      server.listen({ path }, () => {
        server.off("error", reject);
        resolve();
      });
    } finally {
      process.umask(before);
    }
  });
}
