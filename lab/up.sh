#!/usr/bin/env bash
# up.sh: start the lab: Ceph, three hosts with agents, a controller, three VMs (one on each host).
#   RINGFENCE=PATH   the program (default: target/release/ringfence of this checkout)
#   TB_HA=None       HA mode of the VMs (default: NeverStop)
#   TB_VMS=N         number of VMs, distributed over the hosts; TB_ON=host-a: all on that host
#   TB_STATE_MB=N    size of the controller's state disk in MiB
#   TB_CONFIG=TEXT   more lines for the controller's config, before its tables of hosts
set -euo pipefail
. "$(dirname "$0")/env.sh"
RINGFENCE=${RINGFENCE:-$SCRIPTS/../target/release/ringfence}
[[ -x $RINGFENCE ]] || die "program $RINGFENCE is missing: build it with cargo build --release"
((EUID == 0)) || die "root is required for namespaces, bridges and mounts"
C=$TB/controller VMS=${TB_VMS:-3}
alive "$C/pid" && die "lab in $TB is up already: stop it with make lab-down"
"$SCRIPTS/ceph-up.sh"
mkdir -p "$C/state"
[[ -z ${TB_STATE_MB:-} ]] || mount -t tmpfs -o "size=${TB_STATE_MB}m,mode=700" "$TB_ID-state" "$C/state"
(umask 077; head -c 24 /dev/urandom | base64 > "$C/token")

{ cat <<CONF
[controller]
state_dir = "state"
agent_token_file = "token"
[ping]
interval = "1s"
timeout = "2s"
max_failure = 3
sleep_after_failure = "200ms"
[recovery]
hugepages = 8
${TB_CONFIG:-}
[[cluster]]
name = "c1"
[[storage]]
name = "ceph-1"
kind = "ceph"
clusters = ["c1"]
pool = "rbd"
conf = "$TB/ceph/ringfence.conf"
user = "ringfence"
[[storage]]
name = "vhost-1"
kind = "vhost"
clusters = ["c1"]
dir = "/srv/volumes"
CONF
for h in "${HOSTS[@]}"; do
  cat <<CONF
[[host]]
name = "$h"
cluster = "c1"
management_ip = "$(host_ip "$h")"
storage_ips = ["$(host_ip "$h")"]
agent = "http://$(host_ip "$h"):7070"
CONF
done
for ((n = 1; n <= VMS; n++)); do
  cat <<CONF
[[vm]]
name = "vm$n"
cluster = "c1"
ha = "${TB_HA:-NeverStop}"
memory_mib = 16
qemu_args = ["-fw_cfg", "name=opt/tb,string={host}", "-serial", "file:/run/{vm}.serial"]
[[vm.volume]]
storage = "ceph-1"
install_path = "ceph://rbd/vm$n"
root = true
CONF
done; } > "$C/controller.toml"

for h in "${HOSTS[@]}"; do
  "$SCRIPTS/host-up.sh" "$h"
  "$SCRIPTS/agent-up.sh" "$h"
done
for ((n = 1; n <= VMS; n++)); do "$SCRIPTS/image-make.sh" "vm$n"; done

install -m 755 "$RINGFENCE" "$C/ringfence"
"$SCRIPTS/controller-up.sh"
ask() { in_net "$C/ringfence" "$@"; }
connected() { (( $(ask hosts | grep -c ' Connected ') == ${#HOSTS[@]} )); }
wait_for 30 connected || die "hosts do not connect: $(ask hosts 2>&1; tail -3 "$C/log")"
for ((n = 1; n <= VMS; n++)); do ask vm start "vm$n" --host "${TB_ON:-${HOSTS[(n - 1) % ${#HOSTS[@]}]}}" >/dev/null; done
cat <<PLAY

The lab is up. Commands:
  rf() { ip netns exec $TB_NET $C/ringfence "\$@"; }
  rf status;  rf events --follow
  lab/page.sh                              web page at http://127.0.0.1:7080/
  lab/vm-journal.sh vm1 5                  last writers of vm1's disk
  lab/host-exec.sh host-a bash             console of a host
  lab/host-cut.sh host-a ceph|mgmt|all     cut a host off; reconnect: lab/host-heal.sh host-a
  lab/host-freeze.sh host-a [thaw]         freeze a host;  power it off: lab/host-down.sh host-a
  lab/host-up.sh host-a && lab/agent-up.sh host-a       power a host on
Stop the lab: make lab-down
PLAY
