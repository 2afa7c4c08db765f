#!/usr/bin/env bash
# all-down.sh: stop the controller, every host and Ceph of this lab, and delete its state.
set -euo pipefail
. "$(dirname "$0")/env.sh"
stop_pid "$TB/controller/pid"
for d in "$TB"/hosts/*/; do
  [[ -d $d ]] || continue
  H=$(basename "$d"); "$SCRIPTS/host-freeze.sh" "$H" thaw; "$SCRIPTS/host-down.sh" "$H" --wipe
done
"$SCRIPTS/ceph-down.sh"
if [[ -e /run/netns/$TB_NET ]]; then
  for p in $(ip netns pids "$TB_NET"); do kill -KILL "$p" 2>/dev/null || true; done   # processes without a pid file
  ip netns del "$TB_NET"
fi
umount -l "$TB/controller/state" 2>/dev/null || true
rm -rf "$TB"
