#!/bin/sh
# Makes layer.tar, the layer of the vectors: what a TOC has to tell, in little. Needs root. GNU tar 1.34, Python 3.11.
set -eu
mkdir root
python3 - <<'PY'
import os, random
random.seed(7)
r = "root/"
os.makedirs(r + "etc/nested/dir"); os.makedirs(r + "bin"); os.makedirs(r + "data")
open(r + "etc/empty", "w").close()
open(r + "etc/hello", "w").write("hello world\n")
open(r + 'etc/nested/dir/<&>\u2028é "quoted"', "w").write("name\n")
open(r + "bin/" + "n" * 180, "w").write("long name\n")
os.symlink("../etc/hello", r + "bin/link")
os.symlink("/" + "t" * 150, r + "bin/longlink")
os.link(r + "etc/hello", r + "etc/hard")
b = random.randbytes(90000)
with open(r + "data/mixed", "wb") as f:
    f.write(b"a" * 5000 + b[:30000] + bytes(1023) + b[30000:60000] + bytes(1024) + b"tail" + bytes(5000) + b[60000:] + b[:30000] + bytes(2000))
open(r + "data/zeros", "wb").write(bytes(8192))
open(r + "data/zeros-then", "wb").write(bytes(1500) + b"x")
open(r + "data/dup", "wb").write(b[:30000])
open(r + "data/repeat", "wb").write(b"r" * 20000)
os.mkfifo(r + "data/fifo")
os.mknod(r + "data/char", 0o20600, os.makedev(1, 3)); os.mknod(r + "data/block", 0o60600, os.makedev(8, 300))
open(r + ".wh.gone", "w").close()
os.setxattr(r + "etc/hello", "user.comment", b"\x00\xff<xattr>")
os.setxattr(r + "bin", "trusted.t", b"v")
os.chmod(r + "etc/hello", 0o4755); os.chmod(r + "data", 0o1777); os.chown(r + "data/dup", 1000, 100); os.chown(r + "etc/empty", 3000000000, 65534)
for d, ds, fs in os.walk("root", topdown=False):
    for n in fs + ds:
        os.utime(os.path.join(d, n), ns=(1500000000_000000000, 1600000000_123456789 if len(n) % 2 else 1600000000_000000000), follow_symlinks=False)
os.utime(r + "etc/empty", ns=(0, 0)); os.utime(r + "bin/link", ns=(0, -1500000000), follow_symlinks=False); os.utime("root", (1, 1))
PY
tar --format=posix --xattrs --xattrs-include='*' --numeric-owner --sort=name -C root -cf layer.tar .
