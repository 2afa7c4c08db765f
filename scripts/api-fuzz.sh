#!/usr/bin/env bash
# api-fuzz.sh: run schemathesis against a fresh controller: every operation of the OpenAPI description with malformed
# and hostile input, and responses against their schemas. Exit 1 on a finding. EXAMPLES=N: inputs for each operation.
set -euo pipefail
cd "$(dirname "$0")/.."
RINGFENCE=${RINGFENCE:-target/debug/ringfence}
DIR=$(mktemp -d)
trap 'kill "$PID" 2>/dev/null && wait "$PID" 2>/dev/null; rm -rf "$DIR"' EXIT
cat >"$DIR/controller.toml" <<'TOML'
[controller]
listen = "127.0.0.1:0"
state_dir = "state"
requests_per_second = 1000000   # the rate limit has its own test
[[cluster]]
name = "c1"
[[host]]
name = "host-a"
cluster = "c1"
management_ip = "127.0.0.1"
storage_ips = ["127.0.0.1"]
agent = "http://127.0.0.1:1"
[[storage]]
name = "vhost-1"
kind = "vhost"
clusters = ["c1"]
protocols = ["Vhost"]
[[vm]]
name = "vm1"
cluster = "c1"
memory_mib = 16
[[vm.volume]]
storage = "vhost-1"
install_path = "vhost://vm1"
root = true
[[command_hook]]
name = "pager"
argv = ["/bin/true"]
topics = ["ha.*"]
TOML
# With a token: guarded operations must reject requests without one.
TOKEN=$("$RINGFENCE" token fuzz --role admin 2>>"$DIR/controller.toml")
"$RINGFENCE" serve --config "$DIR/controller.toml" >"$DIR/log" 2>&1 &
PID=$!
# Time limit: the log of a controller that does not start is printed.
for _ in $(seq 150); do
  ADDRESS=$(sed -nE 's/^controller listens on (.*)/\1/p' "$DIR/log")
  [[ $ADDRESS ]] && break
  kill -0 "$PID" || break
  sleep 0.1
done
[[ $ADDRESS ]] || { cat "$DIR/log"; exit 1; }
# Also with existing names: otherwise every action fails with "not found".
cat >"$DIR/schemathesis.toml" <<'TOML'
[[operations]]
include-path-regex = "^/v1/(vms|explain)/"
parameters = { id = "vm1" }
[[operations]]
include-path-regex = "^/v1/hosts/"
parameters = { id = "host-a" }
[[operations]]
include-path-regex = "^/v1/hooks/"
parameters = { id = "pager" }
TOML
: >"$DIR/nothing.toml"
# The stream does not end: cli/tests/api.rs covers it, and rejections that a schema cannot express.
cd "$DIR"                     # schemathesis writes a cache into the current folder
for names in nothing schemathesis; do
  st --config-file "$DIR/$names.toml" run "http://$ADDRESS/openapi.json" --exclude-path /v1/events/stream \
    --header "Authorization: Bearer $TOKEN" --max-examples "${EXAMPLES:-50}" --seed 1 --exclude-checks positive_data_acceptance --warnings off --no-color
done
