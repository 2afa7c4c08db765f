#!/usr/bin/env bash
# units-test.sh: check that the systemd units are valid, harden the controller, and do not restrict the agent's VMs.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v systemd-analyze >/dev/null || {
  [[ -z ${CI:-} ]] || { echo "units: systemd-analyze is missing" >&2; exit 1; }
  echo "units: skipped: systemd-analyze is missing (package systemd)"
  exit 0
}
COPY=$(mktemp -d)
trap 'rm -rf "$COPY"' EXIT
die() { echo "units: $*" >&2; exit 1; }

# Without the package the program is missing: verify with another one.
cp deploy/systemd/*.service "$COPY"
sed -i 's|^ExecStart=/usr/bin/ringfence |ExecStart=/bin/true |' "$COPY"/*.service
systemd-analyze verify --man=no "$COPY"/*.service >"$COPY/output" 2>&1 || { cat "$COPY/output"; die "a unit is invalid"; }
[[ ! -s $COPY/output ]] || { cat "$COPY/output"; die "systemd prints warnings about a unit"; }

# Exposure in tenths, as systemd counts: 0 to 100. The controller's remainder is the network; the agent's is root
# without namespaces, which its unit explains.
exposure() {
  local unit=$1 most=$2 output
  output=$(systemd-analyze security --offline=yes --no-pager --threshold="$most" "deploy/systemd/$unit") ||
    { echo "$output" | grep -v '✓'; die "$unit exceeds the exposure limit of $most tenths"; }
  echo "$output" | sed -n 's/.*Overall exposure level for /units: exposure of /p'
}
exposure ringfence.service 15
exposure ringfence-agent.service 65
exposure ringfence-autostart.service 25

# VMs survive the agent's stop, crash and upgrade, and a lack of memory.
AGENT=deploy/systemd/ringfence-agent.service
for line in KillMode=process OOMPolicy=continue ManagedOOMPreference=omit TasksMax=infinity; do
  grep -qx "$line" $AGENT || die "$AGENT lacks $line: a restart of the agent, or a lack of memory, would kill VMs"
done
grep -q '^Before=.*libvirtd.service.*libvirt-guests.service' deploy/systemd/ringfence-autostart.service ||
  die "ringfence-autostart.service does not start before libvirt: a VM that runs elsewhere would start with the host"
grep -qx 'Also=ringfence-autostart.service' $AGENT || die "$AGENT does not enable ringfence-autostart.service"
grep -q '^After=.*libvirt-guests.service' $AGENT || die "$AGENT does not wait for libvirt-guests.service"
# QEMU inherits each of these namespaces, device lists, limits and filters, and would fail.
FATAL='ProtectSystem|ProtectHome|ProtectProc|ProcSubset|ProtectKernelTunables|ProtectKernelModules|ProtectKernelLogs'
FATAL+='|ProtectControlGroups|ProtectClock|ProtectHostname|Private[A-Za-z]+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths'
FATAL+='|TemporaryFileSystem|RootDirectory|RootImage|BindPaths|BindReadOnlyPaths|MountFlags|DynamicUser|User|DeviceAllow'
FATAL+='|DevicePolicy|MemoryDenyWriteExecute|MemoryMax|MemoryHigh|CPUQuota|OOMScoreAdjust|IPAddressDeny|SystemCallLog'
! grep -nE "^($FATAL)=" $AGENT || die "$AGENT has a directive that its VMs inherit"
grep -q '^SystemCallErrorNumber=' $AGENT || die "$AGENT lacks SystemCallErrorNumber=: QEMU would be killed for an optional system call"
echo "units: OK"
