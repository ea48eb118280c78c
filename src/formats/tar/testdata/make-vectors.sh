#!/bin/bash
# Makes the tar vectors of this folder and manifest.json, which says how. Run as root (devices, owners), with GNU tar,
# bsdtar (libarchive-tools), Python 3 and Go (golang-go). The source trees are described in manifest.json from lstat(2), never from a tar:
# the test compares what the decoder says with that.
set -euo pipefail
export LC_ALL=C.UTF-8 TZ=UTC
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '[]' > vectors.json

python3 - <<'PY'
import os, socket
def at(path, seconds, nanos=0): os.utime(path, ns=(seconds * 10**9 + nanos,) * 2, follow_symlinks=False)
def put(path, data=b"", mode=0o644, uid=0, gid=0, seconds=1600000000, nanos=0):
    with open(path, "wb") as f: f.write(data)
    os.chown(path, uid, gid); os.chmod(path, mode); at(path, seconds, nanos)
# small: what every format can hold
os.makedirs("small/dir"); os.chmod("small/dir", 0o2750)
put("small/empty"); put("small/one", b"1"); put("small/block", b"b" * 512); put("small/suid", b"x" * 513, 0o4755, 1000, 1001)
put("small/dir/file", b"hello\n" * 100, 0o600)
os.symlink("dir/file", "small/link"); at("small/link", 1600000001)
os.link("small/dir/file", "small/hard")

at("small/dir", 1600000002); at("small", 1600000003)
# full: what needs extensions
os.makedirs(b"full/" + b"d" * 120 + b"/" + b"e" * 120)
put(b"full/" + b"d" * 120 + b"/" + b"e" * 120 + b"/" + b"f" * 150, b"deep")
put(b"full/" + b"n" * 255, b"name of 255 bytes")
put(b"full/not-utf8-\xff\xfe", b"bytes")
put("full/utf8-\u00e4\u65e5", b"text")
put("full/new\nline = %41", b"odd")
put("full/big-ids", b"", 0o644, 3000000, 4294967294)
os.symlink("t" * 300, "full/long-link"); at("full/long-link", 1600000000)
os.link(b"full/" + b"d" * 120 + b"/" + b"e" * 120 + b"/" + b"f" * 150, "full/hard-to-long")
os.mkfifo("full/fifo", 0o640); at("full/fifo", 1600000000)
os.mknod("full/null", 0o20666, os.makedev(1, 3)); at("full/null", 1600000000)
os.mknod("full/blk", 0o60660, os.makedev(300, 70000)); at("full/blk", 1600000000)
for d in [b"full/" + b"d" * 120 + b"/" + b"e" * 120, b"full/" + b"d" * 120, b"full"]: at(d, 1600000000)
# times: nanoseconds and far ends
os.mkdir("times")
put("times/nanos", b"n", seconds=1600000000, nanos=123456789)
put("times/negative", b"n", seconds=-1000, nanos=0)
put("times/negative-nanos", b"n", seconds=-2, nanos=250000000)
put("times/after-2038", b"n", seconds=4000000000)
put("times/after-2242", b"n", seconds=2**33 + 5)
at("times", 0)
# xattrs
os.mkdir("xattrs"); at("xattrs", 1600000000)
put("xattrs/user"); os.setxattr("xattrs/user", "user.text", b"value"); os.setxattr("xattrs/user", "user.bytes", b"\x00\n=\xff")
put("xattrs/large", b"content"); os.setxattr("xattrs/large", "user.large", bytes(range(256)) * 12)
put("xattrs/capability", b"\x7fELF", 0o755)
os.setxattr("xattrs/capability", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
for f in ("user", "large", "capability"): at("xattrs/" + f, 1600000000)
at("xattrs", 1600000000)
# sparse
os.mkdir("sparse")
def sparse(path, size, pieces):
    with open(path, "wb") as f:
        f.truncate(size)
        for o, d in pieces: f.seek(o); f.write(d)
    at(path, 1600000000)
sparse("sparse/hole-only", 1 << 20, [])
sparse("sparse/data-at-end", 1 << 20, [((1 << 20) - 4096, b"e" * 4096)])
sparse("sparse/hole-at-end", 1 << 20, [(0, b"s" * 4096), (65536, b"t" * 4096)])
sparse("sparse/odd-size", 100001, [(0, b"s" * 4096), (98304, b"z" * 1697)])
sparse("sparse/forty", 40 * 65536, [(i * 65536, bytes([65 + i % 26]) * 4096) for i in range(40)])
sparse("sparse/9GiB", 9 << 30, [(0, b"a" * 4096), ((9 << 30) - 4096, b"b" * 4096)])
at("sparse", 1600000000)
PY

# vector NAME TREE LOSES -- COMMAND...   runs COMMAND with {} as the output file; LOSES: mtime parts, xattrs, or "-"
vector() {
  local name=$1 tree=$2 loses=$3 tool version
  shift 4
  # 1 is a warning: bsdtar about names that are not UTF-8, which it then stores as they are (hdrcharset=BINARY)
  local status=0
  "${@//\{\}/$work/out.tar}" > /dev/null || status=$?
  ((status <= 1))
  gzip -9 -n < out.tar > "$here/$name.tar.gz"
  rm out.tar
  tool=$1
  case $tool in
    gotar) version=$(go version) ;;
    *) version=$("$tool" --version 2>&1 | head -1) ;;
  esac
  python3 - "$name" "$tree" "$loses" "$version" "$@" <<'PY'
import json, sys, shlex
name, tree, loses, version, *command = sys.argv[1:]
v = json.load(open("vectors.json"))
v.append({"file": name + ".tar.gz", "tree": tree, "loses": [] if loses == "-" else loses.split(","), "tool": version, "command": shlex.join(command)})
json.dump(v, open("vectors.json", "w"))
PY
}

for format in v7 ustar oldgnu gnu posix; do
  vector gnu-small-$format small - -- tar --format=$format --numeric-owner --sort=name -cf {} small
done
for format in oldgnu gnu posix; do
  vector gnu-full-$format full - -- tar --format=$format --numeric-owner --sort=name -cf {} full
done
vector gnu-times-gnu times nanoseconds -- tar --format=gnu --sort=name -cf {} times
vector gnu-times-posix times - -- tar --format=posix --sort=name -cf {} times
vector gnu-xattrs xattrs - -- tar --format=posix --xattrs --xattrs-include=* --sort=name -cf {} xattrs
vector gnu-sparse-gnu sparse - -- tar --format=gnu -S --sort=name -cf {} sparse
vector gnu-sparse-oldgnu sparse - -- tar --format=oldgnu -S --sort=name -cf {} sparse
for version in 0.0 0.1 1.0; do
  vector gnu-sparse-$version sparse nanoseconds -- tar --format=posix -S --sparse-version=$version --sort=name -cf {} sparse
done
vector gnu-incremental small - -- tar --format=gnu --numeric-owner --listed-incremental=snapshot --sort=name -cf {} small
vector gnu-label small - -- tar --format=gnu --numeric-owner --label=LABEL --sort=name -cf {} small
vector gnu-blocking small - -- tar --format=gnu --numeric-owner -b 64 --sort=name -cf {} small
vector gnu-global-mtime small mtime -- tar --format=posix --numeric-owner --pax-option=mtime=77.5 --sort=name -cf {} small
for format in v7tar ustar gnutar pax; do
  vector bsd-small-$format small - -- bsdtar --format $format --numeric-owner -cf {} small
done
vector bsd-full-gnutar full - -- bsdtar --format gnutar --numeric-owner -cf {} full
vector bsd-full-pax full - -- bsdtar --format pax --numeric-owner -cf {} full
# libarchive writes 1.75 s before the epoch as "-2.25", which every reader, bsdtar too, takes for 2.25 s
vector bsd-times-pax times negative-nanoseconds -- bsdtar --format pax -cf {} times
vector bsd-xattrs-pax xattrs - -- bsdtar --format pax --xattrs -cf {} xattrs
vector bsd-sparse-pax sparse nanoseconds -- bsdtar --format pax --read-sparse -cf {} sparse
cat > make.py <<'PY'
import sys, tarfile
out, tree, fmt = sys.argv[1:]
with tarfile.open(out, "w", format=getattr(tarfile, fmt + "_FORMAT"), encoding="utf-8", errors="surrogateescape") as t: t.add(tree)
PY
for format in USTAR GNU PAX; do
  vector python-small-$format small - -- python3 make.py {} small $format
done
vector python-full-GNU full - -- python3 make.py {} full GNU
vector python-full-PAX full - -- python3 make.py {} full PAX

cat > make.go <<'GO'
package main

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

var formats = map[string]tar.Format{"ustar": tar.FormatUSTAR, "gnu": tar.FormatGNU, "pax": tar.FormatPAX}

func main() {
	out, err := os.Create(os.Args[1])
	check(err)
	w := tar.NewWriter(out)
	first := map[uint64]string{}
	check(filepath.WalkDir(os.Args[2], func(path string, d fs.DirEntry, err error) error {
		check(err)
		info, err := d.Info()
		check(err)
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			target, err = os.Readlink(path)
			check(err)
		}
		h, err := tar.FileInfoHeader(info, target)
		check(err)
		h.Name, h.Format = path, formats[os.Args[3]]
		if h.Format == tar.FormatUSTAR { // refuses what it can't hold
			h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
		}
		if info.IsDir() {
			h.Name += "/"
		}
		stat := info.Sys().(*syscall.Stat_t)
		if name, seen := first[stat.Ino]; seen {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, name, 0
		} else if info.Mode().IsRegular() {
			first[stat.Ino] = path
		}
		if h.Typeflag == tar.TypeReg {
			list := make([]byte, 4096)
			n, err := syscall.Listxattr(path, list)
			check(err)
			for from, i := 0, 0; i < n; i++ {
				if list[i] != 0 {
					continue
				}
				name, value := string(list[from:i]), make([]byte, 65536)
				size, err := syscall.Getxattr(path, name, value)
				check(err)
				if h.PAXRecords == nil {
					h.PAXRecords = map[string]string{}
				}
				h.PAXRecords["SCHILY.xattr."+name] = string(value[:size])
				from = i + 1
			}
		}
		check(w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			file, err := os.Open(path)
			check(err)
			_, err = io.Copy(w, file)
			check(err)
			check(file.Close())
		}
		return nil
	}))
	check(w.Close())
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
GO
export GO111MODULE=off GOCACHE=$work/gocache
gotar() { go run make.go "$@"; }
for format in ustar gnu pax; do
  vector go-small-$format small - -- gotar {} small $format
done
vector go-full-gnu full - -- gotar {} full gnu
vector go-full-pax full - -- gotar {} full pax
vector go-times-pax times - -- gotar {} times pax
vector go-xattrs-pax xattrs - -- gotar {} xattrs pax

python3 - "$here/manifest.json" <<'PY'
import hashlib, json, os, stat, sys
def describe(path):
    s = os.lstat(path)
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFCHR: "character", stat.S_IFBLK: "block", stat.S_IFIFO: "fifo"}[stat.S_IFMT(s.st_mode)]
    dev = kind in ("character", "block")
    return {"path": path.decode("latin1"), "type": kind, "mode": stat.S_IMODE(s.st_mode), "uid": s.st_uid, "gid": s.st_gid,
        "size": s.st_size if kind == "file" else 0, "mtimeSeconds": s.st_mtime_ns // 10**9, "mtimeNanoseconds": s.st_mtime_ns % 10**9,
        "linkTarget": os.readlink(path).decode("latin1") if kind == "symlink" else "", "rdevMajor": os.major(s.st_rdev) if dev else 0, "rdevMinor": os.minor(s.st_rdev) if dev else 0,
        "inode": s.st_ino if s.st_nlink > 1 and kind == "file" else 0,
        "xattrs": {} if kind != "file" else {n: os.getxattr(path, n).hex() for n in sorted(os.listxattr(path))},
        "content": content(path, s.st_size) if kind == "file" else ""}
def content(path, size):
    "SHA-256 over the 512-byte blocks that are not zero, each after its offset as decimal text and a colon."
    h = hashlib.sha256(); fd = os.open(path, os.O_RDONLY); at = 0
    while at < size:
        try: at = os.lseek(fd, at, os.SEEK_DATA) // 512 * 512
        except OSError: break
        block = os.pread(fd, 512, at)
        if block.strip(b"\0"): h.update(b"%d:" % at + block)
        at += 512
    os.close(fd)
    return h.hexdigest()
trees = {}
for tree in (b"small", b"full", b"times", b"xattrs", b"sparse"):
    trees[tree.decode()] = [describe(tree)] + [describe(os.path.join(d, n)) for d, ds, fs in os.walk(tree) for n in ds + fs]
    ids = {}
    for e in trees[tree.decode()]:
        e["inode"] = ids.setdefault(e["inode"], len(ids) + 1) if e["inode"] else 0
json.dump({"note": "made by make-vectors.sh; content: SHA-256 over non-zero 512-byte blocks, each after its decimal offset and a colon", "vectors": json.load(open("vectors.json")), "trees": trees}, open(sys.argv[1], "w"), indent=1, sort_keys=True)
PY
