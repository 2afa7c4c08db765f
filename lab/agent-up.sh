#!/usr/bin/env bash
# agent-up.sh NAME: (re)start the agent of a running host. RINGFENCE=PATH is copied to the host's disk first.
#   TB_ACCEL=auto|kvm|tcg   accelerator of QEMU (default: tcg)
set -euo pipefail
. "$(dirname "$0")/env.sh"
NAME=${1:?usage: agent-up.sh NAME} U=$TB/hosts/$1/upper
RINGFENCE=${RINGFENCE:-$SCRIPTS/../target/release/ringfence}
mkdir -p "$U/etc/ringfence" "$U/srv/volumes"
# Written inside the host, so that its file system sees the change of its disk.
"$SCRIPTS/host-exec.sh" "$NAME" sh -c 'cat > /usr/local/bin/ringfence.new && chmod 755 /usr/local/bin/ringfence.new &&
  mv /usr/local/bin/ringfence.new /usr/local/bin/ringfence' < "$RINGFENCE"
"$SCRIPTS/host-exec.sh" "$NAME" sh -c 'mkdir -p /etc/ringfence /srv/volumes && umask 077 && cat > /etc/ringfence/token' < "$TB/controller/token"
"$SCRIPTS/host-exec.sh" "$NAME" sh -c 'cat > /etc/ringfence/agent.toml' <<CONF
host = "$NAME"
listen = "$(host_ip "$NAME"):7070"
state_dir = "/var/lib/ringfence-agent"
insecure = true                 # no route leads out of the lab
[qemu]
accel = "${TB_ACCEL:-tcg}"       # nested kvm takes 2.7 s for the firmware, tcg 0.1 s and 20% of a core per guest
[auth]
token_file = "token"
[ssh]
user = "root"
key_file = "/root/.ssh/id_ed25519"
known_hosts_file = "$TB/share/known_hosts"
CONF
"$SCRIPTS/host-exec.sh" "$NAME" sh -c '
  [ -s /run/agent.pid ] && kill "$(cat /run/agent.pid)" 2>/dev/null
  setsid ringfence agent --config /etc/ringfence/agent.toml </dev/null >/run/agent.log 2>&1 &
  echo $! > /run/agent.pid'
serves() { "$SCRIPTS/host-exec.sh" "$NAME" grep -q "listens on" /run/agent.log; }
wait_for 20 serves || die "$NAME: $("$SCRIPTS/host-exec.sh" "$NAME" tail -3 /run/agent.log)"
