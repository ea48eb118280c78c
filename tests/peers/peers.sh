#!/usr/bin/env bash
# The newest releases of the peers (containerd 2.x, podman, skopeo, umoci, criu, erofs-utils, composefs, veritysetup, ...)
# from Debian sid, in a tree of their own, beside the older ones that apt installs on a bookworm host.
#   peers.sh setup            make the tree (about 70 s; needs root and debootstrap, installs it on Debian)
#   peers.sh run CMD ARG...   run CMD inside it: own mount and pid namespace, pivot_root (so that CRIU and skopeo work),
#                             the host's network, /dev and cgroups; $PEERS_SHARE (default /var/tmp/shale-peers/share) is /share inside;
#                             everything CMD starts ends with it
# A process that must go on (a containerd, say) is started by `peers.sh run` in the background, with its socket below /share.
set -euo pipefail
base=${PEERS_ROOT:-/var/tmp/shale-peers}; tree=$base/sid; share=${PEERS_SHARE:-$base/share}
packages=ca-certificates,containerd,podman,skopeo,umoci,erofs-utils,composefs,criu,runc,crun,buildah,jq,zstd,pigz,attr,oras,desync,casync,fsverity,netavark,cryptsetup-bin,iproute2,nftables,conmon,catatonit,libarchive-tools,e2fsprogs,xfsprogs
case ${1:-} in
setup)
  mirror=$(grep -h -m1 '^URIs:' /etc/apt/sources.list.d/debian.sources | awk '{print $2}')
  command -v debootstrap >/dev/null || { apt-get update -qq; apt-get install -y -qq --no-install-recommends debootstrap >/dev/null; }
  [ -e "$tree/.ready" ] && exit 0
  rm -rf "$tree"; mkdir -p "$tree"; debootstrap --variant=minbase --include="$packages" sid "$tree" "$mirror" >"$base/setup.log" 2>&1 || { tail -5 "$base/setup.log"; exit 1; }
  mkdir -p "$tree/etc/containers"; echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$tree/etc/containers/policy.json"
  printf '[[registry]]\nlocation="127.0.0.1:5000"\ninsecure=true\n' >"$tree/etc/containers/registries.conf"
  : >"$tree/.ready" ;;
run)
  shift; [ -e "$tree/.ready" ] || { echo "peers.sh: run 'peers.sh setup' first" >&2; exit 1; }
  mkdir -p "$share"
  export tree share
  exec unshare --mount --pid --fork --kill-child --propagation private bash -c '
    set -e
    mount --bind "$tree" "$tree"; cd "$tree"
    mkdir -p share oldroot; mount --rbind "$share" share
    mount -t proc proc proc; mount -t sysfs sysfs sys; mount --rbind /dev dev; mount --rbind /sys/fs/cgroup sys/fs/cgroup
    mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp
    cp -L /etc/resolv.conf etc/resolv.conf 2>/dev/null || :
    pivot_root . oldroot; cd /; umount -l /oldroot
    "$@"' peers "$@" ;;
*) sed -n '2,10p' "$0"; exit 2 ;;
esac
