#!/usr/bin/env bash
# controller-up.sh: (re)start the controller of a running lab. Does not wait until the controller is ready.
set -euo pipefail
. "$(dirname "$0")/env.sh"
C=$TB/controller
stop_pid "$C/pid"
# Not in a function: $! would be the pid of a subshell.
ip netns exec "$TB_NET" setsid "$C/ringfence" serve --config "$C/controller.toml" </dev/null >>"$C/log" 2>&1 &
echo $! > "$C/pid"
