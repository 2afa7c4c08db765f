#!/usr/bin/env bash
# page.sh [PORT]: the lab's page and API at 127.0.0.1:PORT here (7080), until it is ended. The controller listens on the
# loopback of a namespace, where no browser is.
set -euo pipefail
. "$(dirname "$0")/env.sh"
PORT=${1:-7080}
[[ -e /run/netns/$TB_NET ]] || die "there is no lab: lab/up.sh"
echo "http://127.0.0.1:$PORT/"
exec socat "TCP-LISTEN:$PORT,bind=127.0.0.1,reuseaddr,fork" "EXEC:ip netns exec $TB_NET socat STDIO TCP\\:127.0.0.1\\:7080"
