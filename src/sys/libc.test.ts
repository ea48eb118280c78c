import assert from "node:assert/strict";
import {
  closeSync,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import * as libc from "./libc.ts";
import { errnoNumber, systemError } from "./system-error.ts";
import { needsRoot, withLoopFilesystem, withTemporaryDirectory } from "./testing/filesystems.ts";

test("a failing call throws an error of Node's shape", () => {
  assert.throws(() => libc.flock(-1, libc.LOCK_EX, "/some/path"), {
    name: "Error",
    message: "EBADF: bad file descriptor, flock '/some/path'",
    code: "EBADF",
    errno: -9,
    syscall: "flock",
    path: "/some/path",
  });
  assert.throws(() => libc.fadvise(-1, 0, 0, libc.POSIX_FADV_DONTNEED), { code: "EBADF", syscall: "posix_fadvise" });
});

test("systemError() names errnos that libuv does not know, and takes names as numbers", () => {
  for (const [name, number] of [
    ["ENOTBLK", 15],
    ["EUCLEAN", 117],
    ["EDQUOT", 122],
    ["EIO", 5],
  ] as const) {
    const error = systemError(number, "call");
    assert.deepEqual([error.code, error.errno], [name, -number]);
    assert.equal(errnoNumber(name), number);
  }
  assert.equal(systemError(4000, "call").code, "E4000");
  assert.throws(() => errnoNumber("ENOSUCH"), TypeError);
});

test("a NUL inside a path is refused instead of cutting it", () => {
  assert.throws(() => libc.umount("/tmp\0/x", 0), { code: "EINVAL", syscall: "umount2" });
});

test("xattrs go in and out by path and by descriptor, up to the limit of the kernel's interface", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    writeFileSync(path, "");
    const fd = openSync(path, "r+");
    libc.setXattr(path, "user.a", Buffer.from([0, 255, 10]));
    libc.setXattr(fd, "user.empty", new Uint8Array(0));
    libc.setXattr(fd, "user.a", Buffer.alloc(3000, 7));
    assert.deepEqual(libc.listXattrs(path).sort(), ["user.a", "user.empty"]);
    assert.deepEqual(libc.listXattrs(fd).sort(), ["user.a", "user.empty"]);
    assert.deepEqual(libc.getXattr(path, "user.a"), Buffer.alloc(3000, 7));
    assert.deepEqual(libc.getXattr(fd, "user.empty"), Buffer.alloc(0));
    assert.throws(() => libc.getXattr(path, "user.none"), { code: "ENODATA", path });
    symlinkSync("a", join(directory, "link"));
    assert.deepEqual(libc.listXattrs(join(directory, "link")), []); // the link itself
    closeSync(fd);
  }));

test("setXattr() keeps 64 KiB on XFS", needsRoot, () =>
  withLoopFilesystem("xfs", {}, (directory) => {
    const path = join(directory, "a");
    writeFileSync(path, "");
    const value = Buffer.alloc(libc.XATTR_SIZE_MAX, 3);
    libc.setXattr(path, "user.large", value);
    assert.ok(libc.getXattr(path, "user.large").equals(value));
    assert.throws(() => libc.setXattr(path, "user.large", Buffer.alloc(value.length + 1)), { code: "E2BIG" });
  }),
);

test("setTimes() keeps nanoseconds, before 1970 and after 2038, and does not follow symlinks", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    writeFileSync(path, "");
    symlinkSync("a", join(directory, "link"));
    for (const [seconds, nanoseconds] of [
      [0, 1],
      [-1, 999_999_999],
      [2 ** 32 + 5, 123_456_789],
    ] as const) {
      libc.setTimes(path, { seconds: 0, nanoseconds: 0 }, { seconds, nanoseconds });
      assert.equal(statSync(path, { bigint: true }).mtimeNs, BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds));
    }
    const before = statSync(path, { bigint: true }).mtimeNs;
    libc.setTimes(join(directory, "link"), { seconds: 1, nanoseconds: 0 }, { seconds: 1, nanoseconds: 0 });
    assert.equal(statSync(path, { bigint: true }).mtimeNs, before);
  }));

test("paths may be bytes that are not UTF-8", () =>
  withTemporaryDirectory((directory) => {
    const path = Buffer.concat([Buffer.from(`${directory}/`), Buffer.of(0xff, 0xfe)]);
    libc.mknod(path, 0o010644, 0, 0);
    assert.deepEqual(readdirSync(directory, { encoding: "buffer" }), [Buffer.of(0xff, 0xfe)]);
  }));

test("mknod() keeps large device numbers", needsRoot, () =>
  withTemporaryDirectory((directory) => {
    for (const [major, minor, rdev] of [
      [0, 0, 0],
      [1, 3, 0x103],
      [300, 70_000, 0x11112c70],
      [4095, 0xfffff, 0xffffffff],
    ] as const) {
      const path = join(directory, `${major}-${minor}`);
      libc.mknod(path, 0o020600, major, minor);
      const status = statSync(path);
      assert.deepEqual([status.rdev, status.isCharacterDevice()], [rdev, true]);
    }
  }),
);

test("renameat2() exchanges two names", () =>
  withTemporaryDirectory((directory) => {
    const [a, b] = [join(directory, "a"), join(directory, "b")];
    writeFileSync(a, "a");
    writeFileSync(b, "b");
    libc.renameat2(a, b, libc.RENAME_EXCHANGE);
    assert.deepEqual([readFileSync(a, "utf8"), readFileSync(b, "utf8")], ["b", "a"]);
  }));

test("lseek() finds data and holes beyond 2^32, and ENXIO after the last data", () =>
  withTemporaryDirectory((directory) => {
    const fd = openSync(join(directory, "a"), "wx+");
    const at = 2 ** 33;
    libc.fallocate(fd, 0, at, 65536);
    assert.equal(fstatSync(fd).size, at + 65536);
    writeSync(fd, Buffer.alloc(65536, 1), 0, 65536, at);
    assert.equal(libc.lseek(fd, 0, libc.SEEK_DATA), at);
    assert.equal(libc.lseek(fd, at, libc.SEEK_HOLE), at + 65536);
    assert.throws(() => libc.lseek(fd, at + 65536, libc.SEEK_DATA), { code: "ENXIO" });
    libc.syncFileRange(fd, at, 65536, libc.SYNC_FILE_RANGE_WRITE);
    libc.syncfs(fd);
    closeSync(fd);
  }));

test("cloneFile() shares a whole file on XFS and says ENOTSUP on ext4", needsRoot, () =>
  withLoopFilesystem("xfs", {}, (xfs) =>
    withLoopFilesystem("ext4", {}, (ext4) => {
      for (const [directory, works] of [
        [xfs, true],
        [ext4, false],
      ] as const) {
        writeFileSync(join(directory, "a"), "content");
        const [from, to] = [openSync(join(directory, "a"), "r"), openSync(join(directory, "b"), "wx")];
        if (works) libc.cloneFile(from, to);
        else assert.throws(() => libc.cloneFile(from, to), { code: "ENOTSUP" });
        assert.equal(readFileSync(join(directory, "b"), "utf8"), works ? "content" : "");
        closeSync(from);
        closeSync(to);
      }
    }),
  ),
);

test("leases: a read lease where nobody writes, a write lease where nobody else has the file open", () =>
  withTemporaryDirectory((directory) => {
    const path = join(directory, "a");
    writeFileSync(path, "");
    const fd = openSync(path, "r");
    libc.setLeaseSignal(fd, 23);
    assert.equal(libc.getLease(fd), libc.F_UNLCK);
    const reader = openSync(path, "r");
    libc.setLease(fd, libc.F_RDLCK);
    assert.equal(libc.getLease(fd), libc.F_RDLCK);
    assert.throws(() => libc.setLease(fd, libc.F_WRLCK, path), { code: "EAGAIN", path });
    closeSync(reader);
    libc.setLease(fd, libc.F_WRLCK);
    assert.equal(libc.getLease(fd), libc.F_WRLCK);
    libc.setLease(fd, libc.F_UNLCK);
    const writer = openSync(path, "r+");
    assert.throws(() => libc.setLease(fd, libc.F_RDLCK), { code: "EAGAIN" });
    closeSync(writer);
    closeSync(fd);
  }));
