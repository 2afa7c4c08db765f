#!/usr/bin/env bash
# libvirt-up.sh HOST: start libvirtd on a host (no systemd, no cgroups), with the Ceph key as a libvirt secret.
# SIGSTOP to the pid in the host's /run/libvirtd.pid hangs libvirtd: virsh never returns, domains continue to run.
set -euo pipefail
. "$(dirname "$0")/env.sh"
"$SCRIPTS/host-exec.sh" "${1:?usage: libvirt-up.sh HOST}" bash -euo pipefail -c '
  [ -s /run/libvirtd.pid ] && kill -0 "$(cat /run/libvirtd.pid)" 2>/dev/null && exit 0
  mkdir -p /run/libvirt /var/log/libvirt/qemu /etc/libvirt
  # The driver requires its default user even if another is configured; the package that creates it is not installed.
  getent passwd libvirt-qemu >/dev/null || useradd --system --no-create-home --shell /usr/sbin/nologin libvirt-qemu
  cat > /etc/libvirt/qemu.conf <<CONF
stdio_handler = "file"
cgroup_controllers = [ ]
user = "root"
group = "root"
security_driver = "none"
namespaces = [ ]
remember_owner = 0
CONF
  libvirtd -d
  for n in $(seq 200); do virsh version >/dev/null 2>&1 && break; sleep 0.1; done
  virsh version >/dev/null
  S=22222222-2222-3333-4444-555555555550 F=$(mktemp)
  echo "<secret ephemeral=\"no\" private=\"no\"><uuid>$S</uuid><usage type=\"ceph\"><name>client.compute secret</name></usage></secret>" > $F
  virsh secret-define $F >/dev/null
  sed -n "s/.*key = //p" /etc/ceph/ceph.client.compute.keyring | tr -d "\n" > $F
  virsh secret-set-value $S --file $F >/dev/null; rm -f $F'
echo "libvirtd is up on $1"
