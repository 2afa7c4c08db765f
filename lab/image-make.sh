#!/usr/bin/env bash
# image-make.sh IMAGE [lock|nolock]: create rbd/IMAGE with the guest, if it does not exist.
# nolock (default): feature layering only; lock: also exclusive-lock.
set -euo pipefail
. "$(dirname "$0")/env.sh"
IMG=${1:?usage: image-make.sh IMAGE [lock|nolock]} F=layering
[[ ${2:-nolock} == lock ]] && F=layering,exclusive-lock
[[ -f $TB/guest.raw ]] || { cp "$SCRIPTS/guest.bin" "$TB/guest.raw"; truncate -s 8M "$TB/guest.raw"; }
in_net rbd info "rbd/$IMG" >/dev/null 2>&1 && exit 0
in_net rbd import --no-progress --image-feature "$F" "$TB/guest.raw" "rbd/$IMG"
