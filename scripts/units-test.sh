#!/usr/bin/env bash
# units-test.sh: the systemd units are understood, harden the controller, and leave the agent what its VMs need.
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

# On a machine without the package the program has another name.
cp deploy/systemd/*.service "$COPY"
sed -i 's|^ExecStart=/usr/bin/ringfence |ExecStart=/bin/true |' "$COPY"/*.service
systemd-analyze verify --man=no "$COPY"/*.service >"$COPY/said" 2>&1 || { cat "$COPY/said"; die "a unit is not understood"; }
[[ ! -s $COPY/said ]] || { cat "$COPY/said"; die "systemd warns of a unit"; }

# Exposure in tenths, as systemd counts: 0 is none, 100 all. The controller's rest is the network; the agent's is root and no
# namespace of its own, which its unit explains.
exposure() {
  local unit=$1 most=$2 said
  said=$(systemd-analyze security --offline=yes --no-pager --threshold="$most" "deploy/systemd/$unit") ||
    { echo "$said" | grep -v '✓'; die "$unit is more exposed than $most tenths"; }
  echo "$said" | sed -n 's/.*Overall exposure level for /units: exposure of /p'
}
exposure ringfence.service 15
exposure ringfence-agent.service 65
exposure ringfence-autostart.service 25

# VMs outlive the agent, its stop, its upgrade and a want of memory.
AGENT=deploy/systemd/ringfence-agent.service
for line in KillMode=process OOMPolicy=continue ManagedOOMPreference=omit TasksMax=infinity; do
  grep -qx "$line" $AGENT || die "$AGENT lacks $line: a restart of the agent, or a full machine, would end VMs"
done
grep -q '^Before=.*libvirtd.service.*libvirt-guests.service' deploy/systemd/ringfence-autostart.service ||
  die "ringfence-autostart.service does not come before libvirt: a VM that runs elsewhere would start with the host"
grep -qx 'Also=ringfence-autostart.service' $AGENT || die "$AGENT does not enable ringfence-autostart.service"
grep -q '^After=.*libvirt-guests.service' $AGENT || die "$AGENT does not wait for libvirt-guests.service"
# Each of these is a namespace, a device list, a limit or a filter that QEMU would inherit and break on.
FATAL='ProtectSystem|ProtectHome|ProtectProc|ProcSubset|ProtectKernelTunables|ProtectKernelModules|ProtectKernelLogs'
FATAL+='|ProtectControlGroups|ProtectClock|ProtectHostname|Private[A-Za-z]+|ReadOnlyPaths|ReadWritePaths|InaccessiblePaths'
FATAL+='|TemporaryFileSystem|RootDirectory|RootImage|BindPaths|BindReadOnlyPaths|MountFlags|DynamicUser|User|DeviceAllow'
FATAL+='|DevicePolicy|MemoryDenyWriteExecute|MemoryMax|MemoryHigh|CPUQuota|OOMScoreAdjust|IPAddressDeny|SystemCallLog'
! grep -nE "^($FATAL)=" $AGENT || die "$AGENT has a directive that its VMs would inherit"
grep -q '^SystemCallErrorNumber=' $AGENT || die "$AGENT would kill a QEMU for a system call that it may do without"
echo "units: fine"
