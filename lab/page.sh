#!/usr/bin/env bash
# page.sh [PORT]: forward 127.0.0.1:PORT (default: 7080) to the lab's web page and API until interrupted. The controller
# listens on the loopback of a namespace that a browser cannot reach.
set -euo pipefail
. "$(dirname "$0")/env.sh"
PORT=${1:-7080}
[[ -e /run/netns/$TB_NET ]] || die "lab is down: start it with lab/up.sh"
echo "http://127.0.0.1:$PORT/"
exec socat "TCP-LISTEN:$PORT,bind=127.0.0.1,reuseaddr,fork" "EXEC:ip netns exec $TB_NET socat STDIO TCP\\:127.0.0.1\\:7080"
