#!/usr/bin/env bash
# controller-up.sh: (re)start the controller of a lab that is up. It waits for nothing: ask it.
set -euo pipefail
. "$(dirname "$0")/env.sh"
C=$TB/controller
stop_pid "$C/pid"
# Not through a function: its subshell would be what $! names.
ip netns exec "$TB_NET" setsid "$C/ringfence" serve --config "$C/controller.toml" </dev/null >>"$C/log" 2>&1 &
echo $! > "$C/pid"
