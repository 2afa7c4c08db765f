# Shared settings and helpers; sourced by every script.
# State lives under $TB, so two checkouts can run side by side only with
# different TB *and* TB_ID (namespace names carry TB_ID).
TB=${TB:-${TMPDIR:-/tmp}/ringfence-lab}  # all state: ceph data, host roots, keys, images
TB_ID=${TB_ID:-tb}                  # prefix of network namespaces and links
TB_NET=$TB_ID-net                   # netns holding the switch, Ceph and the control plane
NET=${TB_SUBNET:-10.77.0}
MGMT_IP=$NET.1                      # bridge address: the control plane's address
CEPH_IP=$NET.2                      # mon, osd and mgr listen here only
HOSTS=(host-a host-b host-c)        # what up.sh powers on
export CEPH_CONF=$TB/ceph/ceph.conf
SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

die() { echo "${0##*/}: $*" >&2; exit 1; }
# Root runs programs from this folder: a folder of another user under this name in /tmp is rejected.
mkdir -p -- "$(dirname -- "$TB")"
mkdir -m 0755 -- "$TB" 2>/dev/null || [[ -d $TB && ! -L $TB && -O $TB ]] ||
  die "$TB is not a folder of this user: remove it, or set TB to another folder"
in_net() { ip netns exec "$TB_NET" "$@"; }          # run in the switch namespace
host_ip() { echo "$NET.$((11 + $(host_index "$1")))"; }
host_index() {                                       # host-a -> 0, host-b -> 1, ...
  local c=${1#host-}
  [[ $c =~ ^[a-z]$ ]] || die "host names are host-a .. host-z, not '$1'"
  printf '%d' $(($(printf '%d' "'$c") - 97))
}
alive() { [[ -s $1 ]] && ! gone "$(<"$1")"; }        # alive PIDFILE
wait_for() {                                         # wait_for SECONDS CMD...
  local end=$(( $(date +%s%N) + $1 * 1000000000 )); shift
  until "$@" >/dev/null 2>&1; do
    (( $(date +%s%N) < end )) || return 1
    sleep 0.1
  done
}
gone() {                                             # gone PID...: no such process, or only a zombie
  local p; for p; do                                 # (PID 1 here takes a second or two to reap orphans)
    [[ ! -e /proc/$p ]] || grep -q '^State:.Z' "/proc/$p/status" 2>/dev/null || return 1
  done
}
stop_pid() {                                         # stop_pid PIDFILE: TERM, then KILL after 5 s
  alive "$1" || { rm -f "$1"; return 0; }
  local p; p=$(<"$1")
  kill -TERM "$p" 2>/dev/null || true
  wait_for 5 gone "$p" || kill -KILL "$p" 2>/dev/null || true
  rm -f "$1"
}
