//! The program for a failed host without ringfence: a POSIX script that reads command lines as [`cmdline`] does.
//!
//! Invariants: it is generated from the same lists; it reports its sight, and everything that it cannot read as the
//! program would (a process of unknown users, a migration that may have ended) reduces that sight and never counts as
//! absence. Its output has the same form as the program's.

use super::{cmdline, lookout::NAMESPACE_MARK};

/// `/proc` is read by argv tokens; a zombie without threads has no command line and is not found, one with threads has
/// theirs.
const SCRIPT: &str = r#"
set -u
LC_ALL=C; export LC_ALL
if command -v ringfence >/dev/null 2>&1; then exec ringfence kill-vm "$1"; fi
uuid=${1%%@*} meant=${1#"$uuid"}
machine=$(cat /etc/machine-id 2>/dev/null) boot=$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)
euid=$(id -u) pids=false hides=true
space=$(readlink /proc/self/ns/pid)
if [ "$space" = "pid:[4026531836]" ]; then pids=true; fi
if [ -n "$space" ] && [ -O @MARK@ ] && [ "$(cat @MARK@)" = "$space" ]; then pids=true; fi
awk '$2 == "/proc" { o = $4 } END { exit (o == "" || o ~ /hidepid=([1-9]|no|inv|ptr)/) }' /proc/mounts && hides=false
say() {
  printf '{"found":%s,"killed":%s,"alive":%s,"reason":"%s","sight":{"euid":%s,"hostPids":%s,"hidepid":%s,'\
'"unreadable":%s,"unnamed":%s},"machine":{"machineId":"%s","bootId":"%s"}}\n' \
    "$found" "$killed" "$alive" "$1" "$euid" "$pids" "$hides" "$unread" "$unnamed" "$machine" "$boot"
}
found=false killed=false alive=true unread=0 unnamed=0
if [ -n "$meant" ] && [ "$meant" != "@$machine" ]; then say "this is another machine: nothing was searched"; exit 0; fi
list() {
  for d in /proc/[0-9]*; do
    i=$d
    if [ -z "$(tr '\0' x 2>/dev/null <"$d/cmdline")" ]; then
      for t in "$d"/task/[0-9]*; do [ -z "$(tr '\0' x 2>/dev/null <"$t/cmdline")" ] || i=$t; done
    fi
    if ! args=$(tr '\0' '\n' 2>/dev/null <"$i/cmdline"); then
      [ -r "$d/cmdline" ] || [ ! -d "$d" ] || echo "${d#/proc/} unread"
      continue
    fi
    [ -n "$args" ] || continue
    exe=$(readlink "$i/exe" 2>/dev/null) || exe=$(printf '%s\n' "$args" | head -n 1)
    exe=${exe%" (deleted)"}
    is=$(printf '%s\n' "$args" | awk -v want="$uuid" -v exe="${exe##*/}" \
        -v only="@ONLY@" -v machines="@MACHINE@" -v others="@OTHERS@" '
      function digits(s) { s = tolower(s); sub(/^urn:uuid:/, "", s); gsub(/[-{} ]/, "", s); return s }
      function has(list, word) { return index(list, " " word " ") > 0 }
      NR > 1 {
        if (opt == "uuid") { given = 1; uuid = digits($0) }
        if (opt == "smbios" && $0 ~ /(^|,)type=0*(x0*)?1(,|$)/ && match($0, /(^|,)uuid=[^,]*/)) {
          smbios = substr($0, RSTART, RLENGTH); sub(/^,?uuid=/, "", smbios); smbios = digits(smbios)
        }
        if (opt == "machine" || opt == "M") none = ($0 == "none" || $0 ~ /^none,/)
        opt = ""
        if ($0 ~ /^-/) {
          opt = $0; sub(/^--?/, "", opt)
          if (opt == "uuid") given = 1
          if (opt == "incoming") coming = 1
          if (opt == "version" || opt == "help" || opt == "h") ends = 1
          if (!(opt in seen) && (has(only, opt) || has(machines, opt))) { seen[opt] = 1; n++ }
          if (has(only, opt)) certain = 1
        }
      }
      END {
        name = tolower(exe); sub(/^\.+/, "", name); sub(/-wrapped$/, "", name)
        qemu = name ~ /^(qemu-system|qemu-kvm|kvm-|qemu-[0-9])/ || name == "kvm" || name == "qemu"
        shape = certain && n >= @SHAPE@ && !has(others, exe) && exe !~ /^python/
        if ((!qemu && !shape) || ends) exit
        if (!given) uuid = smbios
        if (uuid !~ /^[0-9a-f]+$/ || length(uuid) != 32) { if (!none || given) print "unnamed" }
        else if (uuid == digits(want)) print (coming ? "coming" : "mine")
      }') || is=unread
    [ -n "$is" ] || continue
    for u in $(awk '/^Uid:/ { print $2, $3, $4 }' "$d/status" 2>/dev/null); do
      # Whose VMs these could be is in the agent's file: not known here.
      case $u in
        0) ;;
        *) [ "$(id -nu "$u" 2>/dev/null)" = libvirt-qemu ] || [ "$(id -nu "$u" 2>/dev/null)" = qemu ] || is=unnamed ;;
      esac
    done
    echo "${d#/proc/} $is"
  done
}
of() { printf '%s\n' "$all" | awk -v is="$1" '$2 == is { print $1 }'; }
all=$(list)
for round in 1 2; do
  mine=$(of mine)
  [ -n "$mine" ] || break
  found=true killed=true
  for p in $mine; do kill -9 "$p" 2>/dev/null; done
  n=0
  while all=$(list); [ "$n" -lt 100 ] && [ -n "$(of mine)" ]; do sleep 0.1; n=$((n + 1)); done
  sleep 0.5
  all=$(list)
done
alive=false
[ -z "$(of mine)$(of coming)" ] || found=true alive=true
# A vhost target may hold writes of the VM. It takes `ringfence kill-vm` to end them.
for d in /proc/[0-9]*; do
  admin=$(tr '\0' '\n' 2>/dev/null <"$d/cmdline" | sed -n 's/^socket,id=admin,path=\(.*\),server=on,wait=off$/\1/p')
  [ -z "$admin" ] || ! grep -q "$uuid" "${admin%/*}/exports.json" 2>/dev/null || found=true alive=true
done
unread=$(of unread | wc -l) unnamed=$(of unnamed | wc -l)
say "by script"
"#;

/// The script, whole.
pub(super) fn text() -> String {
    let list = |words: &[&str]| format!(" {} ", words.join(" "));
    SCRIPT
        .replace("@MARK@", NAMESPACE_MARK)
        .replace("@ONLY@", &list(&cmdline::ONLY_QEMUS))
        .replace("@MACHINE@", &list(&cmdline::OF_A_MACHINE))
        .replace("@OTHERS@", &list(&cmdline::NOT_QEMU))
        .replace("@SHAPE@", &cmdline::SHAPE_OPTIONS.to_string())
}
