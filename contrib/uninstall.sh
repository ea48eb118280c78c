#!/bin/sh
# Takes shale out of containerd again: removes its snapshots through containerd, then the lines, then the unit. What images were is
# left in containerd's content store; pull or unpack them again for another snapshotter. Safe to run again.
#
#   uninstall.sh [--config FILE] [--address SOCKET] [--name NAME] [--no-unit] [--no-restart] [--purge] [--root DIR] [--host DIR]
#
#   --config FILE     containerd's configuration; /etc/containerd/config.toml
#   --address SOCKET  containerd's socket; /run/containerd/containerd.sock
#   --name NAME       of the snapshotter in containerd; shale
#   --no-unit         leave the unit (a DaemonSet ran the daemon)
#   --no-restart      start and stop nothing, and remove no snapshots
#   --purge           also remove the store
#   --root DIR        the store; /var/lib/shale
#   --host DIR        prefix of every path that is changed
set -eu

config=/etc/containerd/config.toml address=/run/containerd/containerd.sock name=shale unit=1 restart=1 purge='' host=''
root=/var/lib/shale

fail() {
  printf 'uninstall: %s\n' "$1" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case $1 in
    --config | --address | --name | --root | --host)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --config) config=$2 ;;
        --address) address=$2 ;;
        --name) name=$2 ;;
        --root) root=$2 ;;
        --host) host=${2%/} ;;
      esac
      shift
      ;;
    --no-unit) unit='' ;;
    --no-restart) restart='' ;;
    --purge) purge=1 ;;
    *) fail "unknown argument $1; the first lines of this file say what there is" ;;
  esac
  shift
done

keys() {
  ctr --address "$address" --namespace "$1" snapshots --snapshotter "$name" ls 2>/dev/null | awk 'NR > 1 { print $1 }'
}

# Children first: a round removes what has none, until a round removes nothing.
remove_snapshots() {
  while :; do
    removed=''
    for key in $(keys "$1"); do
      if ctr --address "$address" --namespace "$1" snapshots --snapshotter "$name" rm "$key" >/dev/null 2>&1; then removed=1; fi
    done
    [ -n "$removed" ] || break
  done
  left=$(keys "$1" | wc -l)
  [ "$left" -eq 0 ] || fail "namespace $1 still has $left snapshots of $name: are their containers gone?"
}

if [ -n "$restart" ]; then
  for namespace in $(ctr --address "$address" namespaces ls -q); do
    # A container's own snapshot has no child: it would be removed under the container.
    for container in $(ctr --address "$address" --namespace "$namespace" containers ls -q); do
      ! ctr --address "$address" --namespace "$namespace" containers info "$container" | grep -q "\"Snapshotter\": \"$name\"" ||
        fail "container $container of namespace $namespace runs on $name: remove it first (a node: kubectl drain)"
    done
    remove_snapshots "$namespace"
  done
fi

drop=$(dirname -- "$config")/conf.d/shale.toml
rm -f "$host$drop"
if [ -e "$host$config" ] && grep -q '^imports = .* # shale' "$host$config"; then
  sed '/^imports = .* # shale$/d; s/^imports = .* # shale, before: //' "$host$config" >"$host$config.shale"
  chmod --reference="$host$config" "$host$config.shale"
  mv -f "$host$config.shale" "$host$config"
fi
printf 'uninstall: removed %s\n' "$drop"
if [ -n "$restart" ]; then systemctl restart containerd.service; fi

if [ -n "$unit" ]; then
  if [ -n "$restart" ]; then systemctl disable --now shale.service || true; fi
  rm -f "$host/etc/systemd/system/shale.service"
  if [ -n "$restart" ]; then systemctl daemon-reload; fi
fi

if [ -n "$purge" ]; then
  case $root in
    /*/*) ;;
    *) fail "$root is no directory of a store" ;;
  esac
  [ -e "$host$root/shale.db" ] || [ ! -e "$host$root" ] || fail "$root has no store"
  # Deepest first; what containers still have stays with them.
  awk -v root="$host$root/" 'index($5, root) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r mount; do umount -l "$mount"; done
  rm -rf "${host}${root:?}"
  printf 'uninstall: removed %s\n' "$root"
fi
