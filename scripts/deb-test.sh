#!/usr/bin/env bash
# deb-test.sh: both packages on a clean Debian 12: installed, configured, run, upgraded, removed, purged. Needs root.
# It happens in mount, pid and net namespaces of its own: when it ends, however it ends, the kernel takes down what it
# mounted and started. PROFILE=campaign by default; the clean Debian is made once, target/deb-test/base.
set -euo pipefail
cd "$(dirname "$0")/.."
PROFILE=${PROFILE:-campaign}
WORK=$PWD/target/deb-test
ROOT=$WORK/root
die() { echo "deb-test: FAILED: $*" >&2; exit 1; }
say() { echo "deb-test: $*"; }

skipped() {
  [[ -z ${CI:-} ]] || die "skipped on CI: $*"
  say "skipped: $*"
  exit 0
}

make_base() {
  [[ ! -f $WORK/base.done ]] || return 0
  local suites suite=bookworm mirror
  # Where this machine's own apt takes Debian from.
  suites=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(SITE)' 'Created-By: Packages')
  mirror=$(awk -v suite=$suite '$1 == suite && $2 == "main" { print $3; exit }' <<<"$suites")
  [[ $mirror ]] || skipped "apt on this machine knows no mirror of Debian 12 (run apt-get update)"
  rm -rf "$WORK/base"
  say "a clean Debian 12, once"
  debootstrap --variant=minbase --include=adduser,systemd,dbus,qemu-system-x86,qemu-utils $suite "$WORK/base" "$mirror" >"$WORK/debootstrap.log" 2>&1 ||
    { tail -n 5 "$WORK/debootstrap.log" >&2; die "debootstrap"; }
  touch "$WORK/base.done"
}

outside() {
  ((EUID == 0)) || skipped "making a Debian to install on needs root"
  for program in debootstrap unshare setpriv lintian; do
    command -v $program >/dev/null || skipped "$program is missing (scripts/setup.sh deb)"
  done
  mkdir -p "$WORK" "$ROOT"
  make_base
  rm -rf "$WORK/packages"
  PROFILE=$PROFILE OUT=$WORK/packages scripts/deb.sh
  PROFILE=$PROFILE OUT=$WORK/packages VERSION=9.0.0-1 scripts/deb.sh
  lintian --allow-root --fail-on error,warning --tag-display-limit 0 "$WORK"/packages/*_9.0.0-1_*.deb || die "lintian"
  say "lintian: fine"
  unshare --mount --propagation private --pid --fork --kill-child --net "$PWD/scripts/deb-test.sh" --inside
  ! grep -qF "$WORK" /proc/self/mountinfo && [[ -z $(ls -A "$ROOT") ]] || die "something stayed mounted"
}

in_root() { chroot "$ROOT" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@"; }
ringfence() { in_root ringfence "$@"; }
install() { in_root dpkg -i /tmp/ringfence_"$1"_amd64.deb /tmp/ringfence-agent_"$1"_amd64.deb </dev/null; }

# A value of an installed unit.
unit() { sed -n "s/^$2=//p" "$ROOT/usr/lib/systemd/system/$1.service"; }

# As systemd would: the unit's user, without any capability, with its state directory.
start_controller() {
  local user exec state
  user=$(unit ringfence User) exec=$(unit ringfence ExecStart) state=/var/lib/$(unit ringfence StateDirectory)
  in_root install -d -o "$user" -g "$user" -m "$(unit ringfence StateDirectoryMode)" "$state"
  # shellcheck disable=SC2086 # the words of ExecStart
  chroot "$ROOT" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all --reset-env \
    $exec >"$ROOT/tmp/controller.log" 2>&1 &
  CONTROLLER=$!
  for _ in $(seq 300); do
    ! ringfence status >/dev/null 2>&1 || return 0
    kill -0 $CONTROLLER 2>/dev/null || break
    sleep 0.1
  done
  cat "$ROOT/tmp/controller.log" >&2
  die "the controller does not serve"
}

stop_controller() {
  kill -TERM $CONTROLLER
  wait $CONTROLLER || die "the controller did not end well: $(cat "$ROOT/tmp/controller.log")"
}

events() { ringfence events --json; }

inside() {
  # Nothing that is written outlives this namespace.
  mount -t tmpfs -o size=1g,mode=755 tmpfs "$ROOT"
  mkdir "$ROOT/upper" "$ROOT/work" "$ROOT/merged"
  mount -t overlay overlay -o "lowerdir=$WORK/base,upperdir=$ROOT/upper,workdir=$ROOT/work" "$ROOT/merged"
  ROOT=$ROOT/merged
  mount -t proc proc "$ROOT/proc"
  mount -t proc proc /proc
  ip link set lo up
  cp "$WORK"/packages/*.deb "$ROOT/tmp/"
  local first second
  first=$(cd "$WORK/packages" && ls ringfence_*.deb | grep -v _9.0.0-1_ | cut -d_ -f2) second=9.0.0-1

  install "$first" >"$ROOT/tmp/said" 2>&1 || { cat "$ROOT/tmp/said"; die "dpkg -i"; }
  grep -q 'systemctl enable --now ringfence$' "$ROOT/tmp/said" || die "the package does not say what to do next"
  in_root id ringfence >/dev/null || die "no user ringfence"
  ! compgen -G "$ROOT/etc/systemd/system/*/ringfence*" >/dev/null || die "a unit was enabled that nobody configured"
  in_root test -s /usr/share/man/man1/ringfence.1.gz || die "no manual page"
  in_root bash -ec '. /usr/share/bash-completion/completions/ringfence; complete -p ringfence' >/dev/null || die "no completions"
  say "installed: user, manual pages, completions; nothing enabled"

  local file role why
  for role in controller:'the file has no host' agent:'does not set the host'; do
    file=/etc/ringfence/${role%%:*}.toml why=${role#*:}
    ! ringfence check --config "$file" >"$ROOT/tmp/said" 2>&1 || die "$file is not configured, check says it is"
    grep -q "$why" "$ROOT/tmp/said" || { cat "$ROOT/tmp/said"; die "check does not say what $file lacks"; }
  done
  cat >>"$ROOT/etc/ringfence/controller.toml" <<'TOML'
# by the admin
[[cluster]]
name = "c1"
[[host]]
name = "host-a"
cluster = "c1"
management_ip = "127.0.0.1"
agent = "http://127.0.0.1:7070"
TOML
  sed -i 's/^# host = .*/host = "host-a"  # by the admin/' "$ROOT/etc/ringfence/agent.toml"
  ringfence check --config /etc/ringfence/controller.toml >/dev/null || die "the configured controller's file"
  ringfence check --config /etc/ringfence/agent.toml >/dev/null || die "the configured agent's file"
  say "check: says what the files as installed lack, is content with the admin's"

  # A VM that the agent was ordered to run, and one of libvirt alone; both have autostart, both ran at the last shutdown.
  local ours=11111111-1111-4111-8111-111111111111 other=22222222-2222-4222-8222-222222222222 vm
  mkdir -p "$ROOT/etc/libvirt/qemu/autostart" "$ROOT/var/lib/libvirt" "$ROOT/var/lib/ringfence-agent/vm"
  for vm in $ours $other; do
    echo "<domain type='kvm'><name>vm-$vm</name><uuid>$vm</uuid></domain>" >"$ROOT/etc/libvirt/qemu/$vm.xml"
    ln -s "../$vm.xml" "$ROOT/etc/libvirt/qemu/autostart/$vm.xml"
  done
  echo "qemu:///system $ours $other" >"$ROOT/var/lib/libvirt/libvirt-guests"
  echo "{\"epoch\": 1, \"incarnations\": {\"$ours\": 1}}" >"$ROOT/var/lib/ringfence-agent/vm/orders.json"
  # shellcheck disable=SC2046 # the words of ExecStart
  in_root $(unit ringfence-autostart ExecStart) >"$ROOT/tmp/said" 2>&1 || { cat "$ROOT/tmp/said"; die "hold-autostart"; }
  [[ $(ls "$ROOT/etc/libvirt/qemu/autostart") == "$other.xml" ]] || die "libvirt would start the wrong VMs: $(cat "$ROOT/tmp/said")"
  [[ -s $ROOT/etc/libvirt/qemu/$ours.xml ]] || die "the domain's own file was removed"
  [[ $(cat "$ROOT/var/lib/libvirt/libvirt-guests") == "qemu:///system $other" ]] || die "libvirt-guests would start the wrong VMs"
  rm -r "$ROOT/var/lib/ringfence-agent/vm"
  say "the unit that runs before libvirt removes the autostart of a VM that the agent ran, and no other"

  start_controller
  ringfence host maintain host-a >/dev/null
  ringfence host activate host-a >/dev/null
  ringfence events --verify | grep -q "hash chain verified" || die "the chain"
  local before files old
  files=$(in_root sha256sum /etc/ringfence/controller.toml /etc/ringfence/agent.toml)
  old=$(in_root sha256sum /var/lib/ringfence/epoch)
  before=$(events | head -n 4)
  [[ $(wc -l <<<"$before") -ge 3 ]] || die "no records: $before"
  say "the controller serves as its user by the unit's ExecStart, and recorded: $(wc -l <<<"$before") of its records are compared later"

  # While it runs: systemd restarts it afterwards, nothing stops it before.
  install "$second" >"$ROOT/tmp/said" 2>&1 || { cat "$ROOT/tmp/said"; die "upgrade"; }
  kill -0 $CONTROLLER || die "the upgrade ended the controller"
  ! grep -q 'next:' "$ROOT/tmp/said" || die "an upgrade speaks as if it were new"
  [[ $(in_root dpkg-query -W -f '${Version}' ringfence-agent) == "$second" ]] || die "not upgraded"
  in_root sha256sum -c --quiet <<<"$files" || die "the upgrade changed the admin's files"
  in_root sha256sum -c --quiet <<<"$old" || die "the upgrade changed the state"
  stop_controller
  start_controller
  [[ $(events | head -n "$(wc -l <<<"$before")") == "$before" ]] || die "records changed"
  ringfence events --verify | grep -q "hash chain verified" || die "the chain after the upgrade"
  # A new program restarts the agent too, which has no package of its own to say so.
  in_root dpkg -i "/tmp/ringfence_${second}_amd64.deb" >"$ROOT/tmp/said" 2>&1 || { cat "$ROOT/tmp/said"; die "the program alone"; }
  grep -q 'Processing triggers for ringfence-agent' "$ROOT/tmp/said" || die "the agent gets no trigger for a new program"
  say "upgraded while it ran: the admin's files and the state as they were; $(ringfence events --verify)"
  stop_controller

  # What an agent leaves behind: orders, a VM that runs, a volume.
  local agent=$ROOT/var/lib/ringfence-agent vm
  mkdir -p "$agent/vm/1" "$agent/volumes/v"
  echo '{}' >"$agent/vm/orders.json"
  touch "$agent/volumes/v/vm1.raw"
  in_root dpkg -r ringfence-agent ringfence >"$ROOT/tmp/said" 2>&1 || { cat "$ROOT/tmp/said"; die "remove"; }
  grep -q 'the journal stays' "$ROOT/tmp/said" && grep -q 'run on' "$ROOT/tmp/said" || die "remove does not say what stays"
  [[ ! -e $ROOT/usr/bin/ringfence && -s $ROOT/var/lib/ringfence/journal.db && -s $ROOT/etc/ringfence/controller.toml ]] ||
    die "remove: the program goes, state and files stay"
  say "removed: the program went, state and files stayed"

  # A program that names the state in its arguments, as QEMU and a storage target do.
  chroot "$ROOT" tail -f /var/lib/ringfence-agent/vm/orders.json >/dev/null &
  vm=$!
  until grep -qaz '^tail$' "/proc/$vm/cmdline"; do kill -0 $vm; done
  ! in_root dpkg -P ringfence-agent >"$ROOT/tmp/said" 2>&1 || die "the state of VMs that run was purged"
  grep -q "in use by process" "$ROOT/tmp/said" && [[ -s $agent/vm/orders.json ]] || { cat "$ROOT/tmp/said"; die "purge"; }
  kill $vm
  wait $vm || true
  in_root dpkg -P ringfence-agent ringfence >"$ROOT/tmp/said" 2>&1 || { cat "$ROOT/tmp/said"; die "purge"; }
  grep -q 'removing /var/lib/ringfence with' "$ROOT/tmp/said" || die "purge does not say what it removes"
  [[ ! -e $ROOT/var/lib/ringfence && ! -e $ROOT/etc/ringfence && ! -e $agent/vm ]] || die "purge left something"
  [[ -e $agent/volumes/v/vm1.raw ]] || die "purge removed a volume"
  say "purged: refused while a VM ran; then the state went, and only the volumes stayed"
  say "fine"
}

if [[ ${1:-} == --inside ]]; then inside; else outside; fi
