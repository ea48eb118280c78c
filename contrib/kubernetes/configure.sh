#!/bin/sh
# Init container of the DaemonSet: adds shale's lines to the host's containerd, and restarts it if they are new. The host's root is at
# /host; its own containerd says its version. Environment: CONTAINERD_CONFIG, CONTAINERD (the host's program), CONTAINERD_UNIT.
set -eu

config=${CONTAINERD_CONFIG:-/etc/containerd/config.toml}
containerd=${CONTAINERD:-containerd}
unit=${CONTAINERD_UNIT:-containerd.service}
host=${HOST_ROOT:-/host}
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)

state() { cat "$host$config" "$host$(dirname -- "$config")/conf.d/shale.toml" 2>/dev/null | sha256sum; }

# In the host's own namespaces, so that it finds its libraries.
wrapper=$(mktemp)
trap 'rm -f "$wrapper"' EXIT
printf '#!/bin/sh\nexec nsenter --target 1 --mount -- %s "$@"\n' "$containerd" >"$wrapper"
chmod +x "$wrapper"

before=$(state)
"$here/install.sh" --host "$host" --config "$config" --containerd "$wrapper" --no-unit --no-restart
if [ "$(state)" = "$before" ]; then
  printf 'configure: containerd has the lines already\n'
else
  nsenter --target 1 --mount --uts --ipc --net --pid -- systemctl restart "$unit"
  printf 'configure: restarted %s\n' "$unit"
fi
