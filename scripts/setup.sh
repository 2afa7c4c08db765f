#!/usr/bin/env bash
# setup.sh demo|lab|test|book|fuzz|deb|prove|mutants: install missing packages and tools on Debian 12. Needs root or
# sudo only if something is missing. demo: packages to run VMs; lab: also Ceph and hosts; test: also the test tools.
# Independent of these: book (mdbook), fuzz (a C++ compiler for libFuzzer), deb (packaging), prove (an SMT solver),
# mutants (cargo-mutants).
set -euo pipefail
WHAT=${1:?usage: setup.sh demo|lab|test|book|fuzz|deb|prove|mutants}
say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

SUDO=()
((EUID == 0)) || SUDO=(sudo)
apt_get() {
  command -v apt-get >/dev/null || die "apt-get is missing: install these packages and retry: $*"
  ((EUID == 0)) || command -v sudo >/dev/null || die "packages are missing: $*; run as root or install sudo"
  say "installing: $*"
  "${SUDO[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends --allow-downgrades "$@" >&2
}
updated=
refresh() { [[ $updated ]] || { "${SUDO[@]}" apt-get update -qq >&2 || true; updated=1; }; }
unpacked() {                  # unpacked PACKAGE: unpack its files into a new folder and print the folder
  local folder
  folder=$(mktemp -d)
  (cd "$folder" && apt-get download -qq "$1" 2>/dev/null && dpkg -x ./*.deb .)
  echo "$folder"
}
need() {                      # need COMMAND PACKAGE...: install the packages if the command is missing
  command -v "$1" >/dev/null && return
  refresh
  apt_get "${@:2}"
}

# Tools are built without optimization: that halves the time, and their input is small.
need cc gcc libc6-dev
need cargo cargo-web rustc-web      # Debian 12's rustc is too old; rustc-web is newer
if [[ $WHAT == book ]]; then
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  command -v mdbook >/dev/null || { say "building mdbook (about two minutes, once)"; cargo install --debug --locked --no-default-features --features search mdbook@0.5.4; }
  command -v hyperlink >/dev/null || { say "building hyperlink (half a minute, once)"; cargo install --debug --locked hyperlink@0.3.2; }
  exit 0
fi
TOOLS=target/tools
tools_venv() {                # one Python environment under target/tools
  python3 -c 'import ensurepip' 2>/dev/null || need python3-venv-is-no-command python3 python3-venv
  mkdir -p $TOOLS
  [[ -x $TOOLS/bin/pip ]] || python3 -m venv $TOOLS
}
z3() {
  tools_venv
  $TOOLS/bin/python -c 'import sys, z3; sys.exit(z3.get_version_string() != "4.13.4")' 2>/dev/null && return
  say "installing z3 into $TOOLS"
  $TOOLS/bin/pip install --quiet --disable-pip-version-check z3-solver==4.13.4.0
}
if [[ $WHAT == prove ]]; then
  z3
  exit 0
fi
if [[ $WHAT == mutants ]]; then
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  cargo nextest --version >/dev/null 2>&1 || { say "building cargo-nextest (some minutes, once)"; cargo install --debug --locked cargo-nextest@0.9.114; }
  cargo mutants --version >/dev/null 2>&1 || { say "building cargo-mutants (some minutes, once)"; cargo install --debug --locked cargo-mutants@27.1.0; }
  exit 0
fi
if [[ $WHAT == fuzz ]]; then
  need g++ g++
  exit 0
fi
if [[ $WHAT == deb ]]; then
  need dpkg-shlibdeps dpkg-dev
  need lintian lintian
  need debootstrap debootstrap
  need unshare util-linux
  need ip iproute2
  need pgrep procps
  need systemd-analyze systemd
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  cargo deb --version >/dev/null 2>&1 || { say "building cargo-deb (some minutes, once)"; cargo install --debug --locked cargo-deb@3.8.0; }
  exit 0
fi
if ! command -v qemu-system-x86_64 >/dev/null || ! command -v qemu-storage-daemon >/dev/null; then
  # A backported qemu-utils conflicts with the stable qemu-system: take both from the same release.
  need qemu-system-x86_64 qemu-utils/bookworm qemu-system-x86 || need qemu-system-x86_64 qemu-utils qemu-system-x86
  need qemu-storage-daemon qemu-system-common
fi
[[ $WHAT == demo ]] && exit 0

need ceph-mon ceph-mon ceph-common
need ceph-osd ceph-osd
dpkg -s qemu-block-extra >/dev/null 2>&1 || need qemu-block-extra-is-no-command qemu-block-extra     # QEMU's rbd driver
need sshd openssh-server
need nft nftables
need uuidgen uuid-runtime
need unshare util-linux
need ip iproute2
need socat socat
need pgrep procps
need libvirtd libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients      # without libvirt-daemon-system, which starts services
[[ $WHAT == lab ]] && exit 0

need rustfmt rustfmt-web
cargo clippy --version >/dev/null 2>&1 || need cargo-clippy rust-web-clippy
need as binutils
need systemd-analyze systemd
need dockerd docker.io
need chromedriver chromium chromium-driver fonts-dejavu-core
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
cargo nextest --version >/dev/null 2>&1 || { say "building cargo-nextest (some minutes, once)"; cargo install --debug --locked cargo-nextest@0.9.114; }
cargo deny --version >/dev/null 2>&1 || { say "building cargo-deny (some minutes, once)"; cargo install --debug --locked cargo-deny@0.20.2; }

if [[ ! -f $TOOLS/guest/vmlinuz ]]; then
  say "downloading a kernel for the test guest into $TOOLS"
  refresh
  # Debian's kernel, unpacked but not installed.
  PACKAGE=$(unpacked "$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ { print $2; exit }')")
  mkdir -p $TOOLS/guest
  find "$PACKAGE/lib/modules" -name 'virtio*.ko' -exec cp {} $TOOLS/guest/ \;
  cp "$PACKAGE"/boot/vmlinuz-* $TOOLS/guest/vmlinuz
  rm -rf "$PACKAGE"
fi
# Checkers that Debian lacks, or whose package starts a daemon: under target/tools.
tools_venv
z3
if [[ ! -x $TOOLS/bin/st || ! -f $TOOLS/axe.min.js ]]; then
  say "installing schemathesis and axe into $TOOLS"
  $TOOLS/bin/pip install --quiet --disable-pip-version-check schemathesis==4.32.5
  $TOOLS/bin/pip install --quiet --disable-pip-version-check --no-deps axe-core-python==0.1.0
  cp $TOOLS/lib/python3*/site-packages/axe_core_python/axe.min.js $TOOLS/axe.min.js
fi
if [[ ! -x $TOOLS/promtool ]]; then
  say "installing promtool into $TOOLS"
  refresh
  # The package would start Prometheus: only promtool is used.
  PACKAGE=$(unpacked prometheus)
  cp "$PACKAGE/usr/bin/promtool" $TOOLS/promtool
  rm -rf "$PACKAGE"
fi
