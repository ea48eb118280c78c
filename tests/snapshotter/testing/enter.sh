#!/bin/bash
# A mount and a pid namespace for one containerd of a test, held by this process: everything in them ends with it.
#
#   enter.sh TREE SHARED     TREE is the root file system ("/" for the host's own), under an overlay so that it stays as it is;
#                            SHARED (a shared mount) is at its own path in both, and what the host mounts in it appears here
#
# Mounts go one way: what is mounted in here is never seen outside. The first process reaps what nobody else waits for, so
# that containerd itself can be killed without its containers. Ready when SHARED/ready-PID exists (PID: of this process).
set -euo pipefail
export tree=$1 shared=$2 ready=$2/ready-$$
exec unshare --mount --pid --fork --kill-child --propagation slave bash -c '
  set -e
  if [ "$tree" != / ]; then
    m=$shared/root-of-namespace
    mkdir -p "$m"; mount -t tmpfs tmpfs "$m"; mkdir "$m/upper" "$m/work" "$m/root"
    mount -t overlay overlay -o "lowerdir=$tree,upperdir=$m/upper,workdir=$m/work" "$m/root"
    cd "$m/root"
    mkdir -p ".$shared" oldroot
    mount --rbind "$shared" ".$shared"
    mount --rbind /sys sys; mount --rbind /dev dev
    mount -t tmpfs tmpfs run; mount -t tmpfs tmpfs tmp; mount -t proc proc proc
    pivot_root . oldroot; cd /; umount -l /oldroot
  else
    mount -t tmpfs tmpfs /run; mount -t proc proc /proc
  fi
  : >"$ready"
  while :; do sleep 86400 & wait $!; done'
