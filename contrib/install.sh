#!/bin/sh
# Installs shale as containerd's snapshotter on this host: its unit, and a file of lines for containerd beside its configuration, chosen by
# `containerd --version` (a line of the wrong version stops containerd from starting). Safe to run again.
#
#   install.sh [--shale FILE] [--containerd FILE] [--config FILE] [--no-unit] [--no-restart] [--host DIR]
#
#   --shale FILE       the program; shale on PATH, else the one beside this directory
#   --containerd FILE  containerd's program; containerd on PATH
#   --config FILE      containerd's configuration; /etc/containerd/config.toml
#   --no-unit          only containerd's lines (a DaemonSet runs the daemon)
#   --no-restart       start and restart nothing
#   --host DIR         prefix of every path that is written: the host's root in a container
#
# What Kubernetes uses is not changed: `shale daemon check` prints that line.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
shale='' containerd=containerd config=/etc/containerd/config.toml unit=1 restart=1 host=''

fail() {
  printf 'install: %s\n' "$1" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case $1 in
    --shale | --containerd | --config | --host)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --shale) shale=$2 ;;
        --containerd) containerd=$2 ;;
        --config) config=$2 ;;
        --host) host=${2%/} ;;
      esac
      shift
      ;;
    --no-unit) unit='' ;;
    --no-restart) restart='' ;;
    *) fail "unknown argument $1; the first lines of this file say what there is" ;;
  esac
  shift
done

if [ -z "$shale" ]; then
  shale=$(command -v shale || true)
  [ -n "$shale" ] || shale=$(dirname -- "$here")/shale
fi

# "containerd github.com/containerd/containerd 1.6.20~ds1 ..." -> 1 6 20
words=$("$containerd" --version) || fail "cannot run $containerd --version"
version=$(printf '%s\n' "$words" | sed -n 's/.*[ v]\([0-9]\{1,\}\)\.\([0-9]\{1,\}\)\.\([0-9]\{1,\}\).*/\1 \2 \3/p')
[ -n "$version" ] || fail "cannot find a version in: $words"
# shellcheck disable=SC2086 # three words
set -- $version
major=$1 minor=$2 patch=$3
if [ "$major" -ge 2 ]; then
  if [ "$major" -eq 2 ] && [ "$minor" -eq 0 ]; then lines=2.0.toml; else lines=2.1.toml; fi
  format=3
elif [ "$major" -eq 1 ] && [ "$minor" -eq 7 ] && [ "$patch" -ge 23 ]; then
  lines=1.7.toml format=2
elif [ "$major" -eq 1 ] && [ "$minor" -ge 6 ]; then
  # A differ among proxy_plugins makes containerd before 1.7.4 panic; in between, the lines of 1.6 work.
  lines=1.6.toml format=2
else
  fail "containerd $major.$minor.$patch is too old: 1.6 is needed"
fi

main=$host$config
directory=$(dirname -- "$config")/conf.d
drop=$directory/shale.toml

# The version of the file that is there decides: containerd 2 reads files of version 2 too, but of two files with different versions
# it leaves out the plugins of the older one. Our sections are the same in both. A file without a version is of version 1.
if [ -e "$main" ]; then
  found=$(sed -n 's/^[[:space:]]*version[[:space:]]*=[[:space:]]*\([0-9]\{1,\}\).*/\1/p' "$main" | head -n 1)
  [ -n "$found" ] || fail "$config has no version line: it is of version 1, which has no place for these lines"
  [ "$found" -ge 2 ] || fail "$config is of version $found: 2 or later is needed"
  format=$found
  imports=$(grep -E "^[[:space:]]*imports[[:space:]]*=" "$main" || true)
  # shellcheck disable=SC2016 # awk's own $0
  case $imports in
    *"$directory/"*) edit='' ;;
    '')
      # Above the first section, where a key of the top level has to be.
      edit='!done && /^[[:space:]]*version[[:space:]]*=/ { print; print "imports = [\"" drop "\"] # shale"; done = 1; next } { print }'
      ;;
    *]) # `containerd config default` writes "imports = []". What it was stays behind ours, for uninstall.sh.
      edit='
        !done && /^[[:space:]]*imports[[:space:]]*=/ {
          list = $0
          sub(/^[[:space:]]*imports[[:space:]]*=[[:space:]]*\[[[:space:]]*/, "", list)
          sub(/[[:space:]]*,?[[:space:]]*\]$/, "", list)
          print "imports = [" list (list == "" ? "" : ", ") "\"" drop "\"] # shale, before: " $0
          done = 1
          next
        }
        { print }'
      ;;
    *) fail "$config has imports of its own: add \"$drop\" to them, and run this again" ;;
  esac
  if [ -n "$edit" ]; then
    # Renamed into place: never half a file.
    awk -v drop="$drop" "$edit" "$main" >"$main.shale"
    chmod --reference="$main" "$main.shale"
    mv -f "$main.shale" "$main"
  fi
else
  mkdir -p "$(dirname -- "$main")"
  printf 'version = %s\nimports = ["%s"] # shale\n' "$format" "$drop" >"$main"
fi
mkdir -p "$host$directory"
case $(uname -m) in
  aarch64) architecture=arm64 ;;
  *) architecture=amd64 ;;
esac
sed "s|linux/amd64|linux/$architecture|; s|^version = .*|version = $format|" "$here/containerd/$lines" >"$host$drop.new"
mv -f "$host$drop.new" "$host$drop"
printf 'install: containerd %s.%s.%s: wrote %s\n' "$major" "$minor" "$patch" "$drop"

if [ -n "$unit" ]; then
  mkdir -p "$host/etc/systemd/system"
  sed "s|^ExecStart=.*|ExecStart=$shale daemon|" "$here/systemd/shale.service" >"$host/etc/systemd/system/shale.service"
  printf 'install: wrote /etc/systemd/system/shale.service, which starts %s\n' "$shale"
fi
if [ -n "$restart" ]; then
  if [ -n "$unit" ]; then
    systemctl daemon-reload
    systemctl enable --now shale.service
  fi
  systemctl restart containerd.service
  "$shale" daemon check --containerd "$containerd" --containerd-config "$config" || true
else
  printf 'install: restart containerd to let it find the snapshotter\n'
fi
