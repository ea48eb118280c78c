#!/bin/bash
# Makes what the tests of the snapshotter need, from Debian packages only (Go modules are off):
#
#   $OUT/suite-1.6     containerd 1.6.20's own snapshotter suite (bookworm's Go sources), a static test binary
#   $OUT/suite-2.1     containerd 2.1's (sid's Go sources)
#   $OUT/sid           a tree with sid's containerd and runc, entered by testing/enter.sh
#
#   build.sh           what is missing or made of other sources; OUT is printed
#
# Needs root and a Debian mirror. From nothing it takes about three minutes, after that nothing. One run at a time.
set -euo pipefail
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
OUT=${SHALE_CONFORMANCE:-/var/tmp/shale-conformance}
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8
# The mirror's Release file may be older than this machine's clock allows.
APT=(apt-get -qq -o Acquire::Check-Valid-Until=false -o Acquire::Retries=3)
GO_PACKAGES=(golang-go golang-github-containerd-containerd-dev)
mirror() { grep -hs -m1 '^URIs:' /etc/apt/sources.list.d/debian.sources | awk '{print $2}' || true; }
MIRROR=${MIRROR:-$(mirror)}
MIRROR=${MIRROR:-http://deb.debian.org/debian}

compile() { # SRC OUT TAG: on the machine or in the chroot it runs on
  cd "$1"
  export GO111MODULE=off GOPATH=/usr/share/gocode CGO_ENABLED=0 GOFLAGS=-trimpath GOCACHE=${GOCACHE:-/tmp/gocache} HOME=${HOME:-/root}
  go vet -tags="$3" .
  go test -c -tags="$3" -ldflags '-s -w' -o "$2.new" .
  mv "$2.new" "$2"
}

enter() { # ROOT CMD...: chroot with /proc, gone again when it ends
  local root=$1
  shift
  unshare --mount --propagation private bash -c 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"' "$root" "$@"
}

chroot_of() { # CODENAME PACKAGE...: OUT/CODENAME
  local root=$OUT/$1
  [ -e "$root/.ready" ] && return
  command -v debootstrap >/dev/null || { "${APT[@]}" update; "${APT[@]}" install -y --no-install-recommends debootstrap; }
  rm -rf "$root"
  mkdir -p "$root"
  debootstrap --variant=minbase "$1" "$root" "$MIRROR"
  enter "$root" "${APT[@]}" update
  enter "$root" "${APT[@]}" install -y --no-install-recommends ca-certificates "${@:2}"
  enter "$root" "${APT[@]}" clean
  : >"$root/.ready"
}

in_chroot() { # CODENAME TAG NAME
  local root=$OUT/$1
  rm -rf "$root/build"
  mkdir -p "$root/build"
  cp -r "$here/suite" "$root/build/"
  enter "$root" bash -c "$(declare -f compile); set -euo pipefail; compile /build/suite /build/$3 '$2'"
  install -m755 "$root/build/$3" "$OUT/$3"
  rm -rf "$root/build" "$root/tmp/gocache"
}

# By content: a checkout of its own has other times.
sources=$(cat "$here/build.sh" "$here"/suite/*.go | sha256sum)
current() { # NAME
  [ -x "$OUT/$1" ] && [ "$(cat "$OUT/$1.sources" 2>/dev/null)" = "$sources" ]
}

mkdir -p "$OUT"
exec 9>"$OUT/.lock"
flock 9
{
  chroot_of sid containerd runc "${GO_PACKAGES[@]}"
  if ! current suite-2.1; then
    in_chroot sid ctrd2 suite-2.1
    echo "$sources" >"$OUT/suite-2.1.sources"
  fi
  if ! current suite-1.6; then
    if [ "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" = bookworm ]; then
      "${APT[@]}" update
      "${APT[@]}" install -y --no-install-recommends "${GO_PACKAGES[@]}"
      (GOCACHE=$OUT/gocache compile "$here/suite" "$OUT/suite-1.6" ctrd1)
      rm -rf "$OUT/gocache"
    else
      chroot_of bookworm "${GO_PACKAGES[@]}"
      in_chroot bookworm ctrd1 suite-1.6
    fi
    echo "$sources" >"$OUT/suite-1.6.sources"
  fi
} >"$OUT/build.log" 2>&1 || {
  tail -n 20 "$OUT/build.log" >&2
  exit 1
}
echo "$OUT"
