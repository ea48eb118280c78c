#!/usr/bin/env bash
# Real podman, crun and runc with CRIU from Debian sid, able to checkpoint and restore, in namespaces of their own. Needs root and
# `tests/peers/peers.sh setup`. Everything it makes is below $LAB (default: lab beside the tree).
#   lab.sh start     a loop file at $LAB/w/disk (inside: /w/disk) with XFS, or with $LAB_FS; an image, localhost/lab, of busybox
#   lab.sh run CMD   runs CMD inside
#   lab.sh clean     removes what restores left in cgroups: call it between runs
#   lab.sh stop
# Why so: CRIU needs pivot_root (not chroot); podman must see only cgroup2; CRIU dumps every v1 hierarchy from the task's own
# group downwards, so each command runs in a group of its own; there may be no pids controller in cgroup2 (pids_limit = 0).
set -euo pipefail
base=${PEERS_ROOT:-/var/tmp/shale-peers}; tree=$base/sid; lab=${LAB:-$base/lab}
self=$(realpath "$0")
hierarchies=
for c in blkio cpu cpuacct cpuset devices freezer pids systemd; do
  if [ -f "/sys/fs/cgroup/$c/cgroup.procs" ]; then hierarchies="$hierarchies $c"; fi
done
case ${1:-} in
start)
  [ -e "$tree/.ready" ] || { echo "lab.sh: run tests/peers/peers.sh setup first" >&2; exit 1; }
  mkdir -p "$lab"/{upper,work,merged,w/disk}
  if ! mountpoint -q "$lab/w/disk"; then
    [ -f "$lab/disk.img" ] || { truncate -s "${DISK_SIZE:-12G}" "$lab/disk.img"; if [ "${LAB_FS:-xfs}" = xfs ]; then mkfs.xfs -q -m reflink=1 -K "$lab/disk.img"; else "mkfs.$LAB_FS" -q "$lab/disk.img"; fi; }
    mount "$(losetup -f --show --direct-io=on "$lab/disk.img")" "$lab/w/disk"
  fi
  for c in $hierarchies; do mkdir -p "/sys/fs/cgroup/$c/shale-lab"; done
  if [ -d /sys/fs/cgroup/cpuset ]; then
    for g in shale-lab libpod_parent; do
      mkdir -p "/sys/fs/cgroup/cpuset/$g"
      for f in cpus mems; do cat "/sys/fs/cgroup/cpuset/cpuset.$f" >"/sys/fs/cgroup/cpuset/$g/cpuset.$f"; done
    done
  fi
  export lab tree
  setsid unshare --mount --pid --fork --kill-child bash -c '
    set -e; m=$lab/merged
    mount --make-rprivate /
    mount -t overlay overlay -o "lowerdir=$tree,upperdir=$lab/upper,workdir=$lab/work" "$m"
    mount -t proc proc "$m/proc"; mount -t sysfs sysfs "$m/sys"; mount --rbind /dev "$m/dev"; mount -t cgroup2 cgroup2 "$m/sys/fs/cgroup"
    mount -t tmpfs tmpfs "$m/run"; mount -t tmpfs tmpfs "$m/tmp"; mkdir -p "$m/w" "$m/oldroot"; mount --rbind "$lab/w" "$m/w"
    cp -L /etc/resolv.conf "$m/etc/resolv.conf" 2>/dev/null || :
    cd "$m"; pivot_root . oldroot; umount -l /oldroot; : >/run/entered; exec sleep infinity' >"$lab/init.log" 2>&1 &
  echo $! >"$lab/unshare.pid"
  for _ in $(seq 100); do
    pid=$(cat "/proc/$(cat "$lab/unshare.pid")/task/$(cat "$lab/unshare.pid")/children" 2>/dev/null || :)
    if [ -n "$pid" ] && [ -e "/proc/${pid%% *}/root/run/entered" ]; then break; fi
    sleep 0.1
  done
  echo "${pid%% *}" >"$lab/holder.pid"
  "$self" run bash -ec '
    fetch() { cd /root; apt-get -o Acquire::Check-Valid-Until=false update -qq; apt-get -o Acquire::Check-Valid-Until=false download -qq "$1"; }
    ldconfig -p | grep -q libcriu.so.2 || { fetch libcriu2; dpkg -x libcriu2_*.deb /; ldconfig; }
    mkdir -p /etc/criu /w/disk/store
    printf "[storage]\ndriver = \"overlay\"\ngraphroot = \"/w/disk/store\"\nrunroot = \"/run/containers/storage\"\n" >/etc/containers/storage.conf
    printf "[containers]\npids_limit = 0\n[engine]\ncgroup_manager = \"cgroupfs\"\n" >/etc/containers/containers.conf
    for f in default crun runc; do echo "network-lock nftables" >/etc/criu/$f.conf; done
    podman image exists localhost/lab || {
      fetch busybox-static; mkdir -p /root/image; dpkg -x busybox-static_*.deb /root/image; cd /root/image
      mkdir -p bin etc tmp opt data usr/share/doc/pkg; chmod 1777 tmp; chmod 555 .
      [ -x bin/busybox ] || cp usr/bin/busybox bin/busybox
      for c in sh cat ls sleep head sha256sum mkdir rm chmod chown truncate stat du touch ln mv find dd; do ln -sf busybox bin/$c; done
      echo image >etc/issue; echo image >etc/adduser.conf; echo image >etc/gone; for i in 1 2 3; do echo $i >usr/share/doc/pkg/old$i; done
      tar -c . | podman import -q - localhost/lab >/dev/null
    }' >"$lab/setup.log" 2>&1 || { tail -5 "$lab/setup.log" >&2; exit 1; } ;;
run)
  shift
  for c in $hierarchies; do echo $$ >"/sys/fs/cgroup/$c/shale-lab/cgroup.procs"; done
  exec nsenter -m -p -t "$(cat "$lab/holder.pid")" -r -w "$@" ;;
clean)
  for h in $hierarchies memory; do
    d=/sys/fs/cgroup/$h/libpod_parent
    [ ! -d "$d" ] || find "$d" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || :
  done ;;
stop)
  [ ! -s "$lab/holder.pid" ] || kill -9 "$(cat "$lab/holder.pid")" 2>/dev/null || :
  sleep 0.5
  "$self" clean
  loop=$(findmnt -no SOURCE "$lab/w/disk" || :)
  if [ -n "$loop" ]; then
    umount "$lab/w/disk" || umount -l "$lab/w/disk"
    losetup -d "$loop" 2>/dev/null || :
  fi
  rm -rf "$lab" ;;
*) sed -n '2,11p' "$0"; exit 2 ;;
esac
