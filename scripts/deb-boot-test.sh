#!/usr/bin/env bash
# deb-boot-test.sh: both packages where systemd runs, with a VM: the units as they are let controller and agent do their
# work, and upgrade, stop and removal of the agent end no VM. deb-test.sh makes the clean Debian and the packages
# before. systemd is process 1 of namespaces of its own, with a control group of its own; all of it ends with this
# script.
set -euo pipefail
cd "$(dirname "$0")/.."
WORK=$PWD/target/deb-test
ROOT=$WORK/root
die() { echo "deb-boot-test: FAILED: $*" >&2; exit 1; }
say() { echo "deb-boot-test: $*"; }

boot() {
  mount -t tmpfs -o size=2g,mode=755 tmpfs "$ROOT"
  mkdir "$ROOT/upper" "$ROOT/work" "$ROOT/merged"
  mount -t overlay overlay -o "lowerdir=$WORK/base,upperdir=$ROOT/upper,workdir=$ROOT/work" "$ROOT/merged"
  ROOT=$ROOT/merged
  cp "$WORK"/packages/*.deb "$ROOT/root/"
  mount -t proc proc "$ROOT/proc"
  mount -t sysfs sysfs "$ROOT/sys"
  mount -t cgroup2 cgroup2 "$ROOT/sys/fs/cgroup"
  local at
  for at in run tmp dev; do mount -t tmpfs tmpfs "$ROOT/$at"; done
  for at in null zero full random urandom tty; do
    touch "$ROOT/dev/$at"
    mount --bind "/dev/$at" "$ROOT/dev/$at"
  done
  mkdir "$ROOT/dev/pts" "$ROOT/dev/shm"
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$ROOT/dev/pts"
  ln -s pts/ptmx "$ROOT/dev/ptmx"
  ln -s /proc/self/fd "$ROOT/dev/fd"
  ip link set lo up
  # To the agent this PID namespace is a whole host.
  mkdir -p "$ROOT/etc/ringfence"
  (umask 022; readlink "$ROOT/proc/self/ns/pid" >"$ROOT/etc/ringfence/pid-namespace")
  # No chroot: a process in one cannot create a user namespace (PrivateUsers=).
  mkdir -p "$ROOT/old"
  cd "$ROOT"
  pivot_root . old
  umount --lazy /old
  exec /usr/bin/env -i container=ringfence PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd
}
[[ ${1:-} != --boot ]] || boot

CGROUPS=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[[ $CGROUPS ]] || {
  [[ -z ${CI:-} ]] || die "skipped on CI: no cgroup2 is mounted"
  say "skipped: no cgroup2 is mounted, systemd needs one"
  exit 0
}
CGROUP=$CGROUPS/ringfence-deb-test-$$
mkdir "$CGROUP"
take_down() {
  echo 1 >"$CGROUP/cgroup.kill"
  wait 2>/dev/null || true
  # The kernel needs a moment to reap them.
  for _ in $(seq 100); do
    find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [[ -d $CGROUP ]] || return 0
    sleep 0.1
  done
  echo "deb-boot-test: $CGROUP stays" >&2
}
trap take_down EXIT
( echo $BASHPID >"$CGROUP/cgroup.procs"
  exec unshare --cgroup --mount --propagation private --pid --fork --kill-child --net --uts --ipc "$PWD/scripts/deb-boot-test.sh" --boot ) &
OUTER=$!
until INIT=$(pgrep -P $OUTER) && [[ $(readlink "/proc/$INIT/exe") == */systemd ]]; do
  kill -0 $OUTER || die "systemd does not start"
  sleep 0.1
done

in_root() { nsenter -t "$INIT" -a -r -w /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
# Waits, bounded, until a command succeeds.
until_true() {
  for _ in $(seq 300); do
    ! "$@" >/dev/null 2>&1 || return 0
    sleep 0.2
  done
  in_root journalctl --no-pager -n 40 -u ringfence -u ringfence-agent >&2 || true
  die "in vain: $*"
}
install() { in_root sh -c "dpkg -i /root/ringfence_$1_amd64.deb /root/ringfence-agent_$1_amd64.deb" >"$WORK/said" 2>&1 || { cat "$WORK/said"; die "dpkg"; }; }
main_pid() { in_root systemctl show -P MainPID "$1"; }
active() { in_root systemctl is-active "$1"; }
vm_runs() { in_root ringfence vms --json | grep -q '"state": *"Running"'; }
# In the agent's control group, which KillMode=process leaves alone.
qemu() {
  local pid
  while read -r pid; do
    [[ $(readlink "/proc/$pid/exe") != */qemu-system-x86_64 ]] || echo "$pid"
  done <"$CGROUP/system.slice/ringfence-agent.service/cgroup.procs"
}

until_true in_root systemctl is-system-running
first=$(basename "$(ls "$WORK"/packages/ringfence_*.deb | grep -v _9.0.0-1_)" | cut -d_ -f2)
install "$first"
for unit in ringfence ringfence-agent; do ! active $unit >/dev/null || die "$unit was started unconfigured"; done

in_root sh -c 'cat >>/etc/ringfence/controller.toml' <<'TOML'
[ping]
interval = "1s"
timeout = "2s"
[[cluster]]
name = "c1"
[[host]]
name = "host-a"
cluster = "c1"
management_ip = "127.0.0.1"
agent = "http://127.0.0.1:7070"
[[storage]]
name = "disks"
kind = "dir"
clusters = ["c1"]
dir = "/srv/volumes"
[[vm]]
name = "vm1"
cluster = "c1"
memory_mib = 16
[[vm.volume]]
storage = "disks"
install_path = "dir://vm1.raw"
root = true
TOML
in_root sed -i 's/^# host = .*/host = "host-a"/' /etc/ringfence/agent.toml
in_root install -m 600 -o ringfence /etc/ringfence/agent.token /etc/ringfence/controller.token
in_root sed -i 's/^# agent_token_file = /agent_token_file = /' /etc/ringfence/controller.toml
in_root sh -c 'printf "[qemu]\naccel = \"tcg\"\n" >>/etc/ringfence/agent.toml; mkdir -p /srv/volumes; truncate -s 1M /srv/volumes/vm1.raw'
in_root systemctl enable --quiet ringfence-agent && in_root systemctl is-enabled --quiet ringfence-autostart ||
  die "enabling the agent does not enable the unit that holds autostart"
in_root systemctl start ringfence-autostart || die "ringfence-autostart fails under its unit"
in_root systemctl enable --now --quiet ringfence-agent ringfence || { in_root journalctl --no-pager -n 20 -u ringfence -u ringfence-agent; die "the units do not start"; }
until_true in_root sh -c 'ringfence hosts --json | grep -q "\"status\": *\"Connected\""'
in_root ringfence vm start vm1 --host host-a >/dev/null
until_true vm_runs
vm=$(qemu)
[[ $vm ]] || die "the VM is not in the agent's control group"
agent=$(main_pid ringfence-agent) controller=$(main_pid ringfence)
say "under the units as they are: controller and agent serve, vm1 runs as process $vm"

install 9.0.0-1
[[ $(main_pid ringfence-agent) != "$agent" && $(main_pid ringfence) != "$controller" ]] || die "an upgrade leaves the old program running"
until_true vm_runs
[[ $(qemu) == "$vm" ]] || die "the upgrade ended the VM"
say "upgraded: both were restarted, vm1 runs on as process $vm"

agent=$(main_pid ringfence-agent)
in_root dpkg -i /root/ringfence_9.0.0-1_amd64.deb >"$WORK/said" 2>&1 || { cat "$WORK/said"; die "dpkg"; }
[[ $(main_pid ringfence-agent) != "$agent" ]] || die "a new program alone leaves the old agent running"
in_root sh -c "kill -9 $(main_pid ringfence-agent)"
until_true active ringfence-agent
until_true vm_runs
[[ $(qemu) == "$vm" ]] || die "the agent's end ended the VM"
say "restarted by the trigger of a new program, killed and started again: vm1 runs on"

in_root dpkg -r ringfence-agent >"$WORK/said" 2>&1 || { cat "$WORK/said"; die "remove"; }
! active ringfence-agent >/dev/null || die "a removed agent runs"
[[ $(qemu) == "$vm" ]] || die "removing the agent ended the VM"
! in_root dpkg -P ringfence-agent >"$WORK/said" 2>&1 || die "the state of a VM that runs was purged"
in_root ringfence events --verify | grep -q "hash chain verified" || die "the chain"
kill -9 "$vm"
in_root dpkg -P ringfence-agent ringfence >"$WORK/said" 2>&1 || { cat "$WORK/said"; die "purge"; }
! in_root sh -c 'ls -d /etc/systemd/system/*/ringfence* /var/lib/ringfence*' >/dev/null 2>&1 || die "purge left something"
say "removed: vm1 ran on, and its state could not be purged before it ended"
say "fine"
