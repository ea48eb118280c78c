/**
 * The kernel's own answer to "does anyone have this file open?", in any process and any mount namespace: a write lease
 * (fcntl F_SETLEASE) is granted only where the caller's descriptor is the only one.
 */
import { errnoOf } from "../errors/index.ts";
import { closeFile, openFile } from "./files.ts";
import { F_UNLCK, F_WRLCK, setLease, setLeaseSignal } from "./libc.ts";

/** Ignored by default, unlike SIGIO, whose default ends the process; signal(7), same number on x86_64 and arm64. */
const SIGURG = 23;

/**
 * True while another descriptor of the file is open: a reader, a loop device, or an EROFS mount that has it as image or
 * device, also a mount in another namespace or a lazily unmounted one that is still used. Undefined where the file system
 * grants no leases (FUSE, NFS, overlayfs) or this user may not ask (neither owner nor CAP_LEASE): then assume that it is.
 *
 * The answer is of this moment. Who acts on "false" must hold what keeps others from opening the file (the store's lease
 * and its index), and must have no descriptor of it open itself.
 */
export function isOpenElsewhere(path: string): boolean | undefined {
  const fd = openFile(path);
  try {
    setLeaseSignal(fd, SIGURG);
    setLease(fd, F_WRLCK, path);
    setLease(fd, F_UNLCK, path);
    return false;
  } catch (error) {
    const errno = errnoOf(error) ?? "";
    if (errno === "EAGAIN") return true;
    if (["EACCES", "EPERM", "EINVAL", "ENOTSUP", "ENOLCK"].includes(errno)) return undefined;
    throw error;
  } finally {
    closeFile(fd);
  }
}
