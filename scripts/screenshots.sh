#!/usr/bin/env bash
# screenshots.sh: power off a host of a lab and take screenshots of the web page in docs/images. Needs root and
# Chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
export TB_ID=shot TB=${TMPDIR:-/tmp}/ringfence-lab-shot RINGFENCE=${RINGFENCE:-$PWD/target/debug/ringfence}
PORT=7087
PROFILE=$(mktemp -d)
down() {
  [[ -z ${PAGE:-} ]] || kill "$PAGE" 2>/dev/null || true
  lab/all-down.sh
  rm -rf "$PROFILE"
}
trap down EXIT
lab/up.sh >/dev/null
lab/page.sh $PORT >/dev/null & PAGE=$!
until_shows() {                # until_shows PATH TEXT: with a time limit
  for _ in $(seq 300); do
    curl -s -H 'Accept: text/html' "http://127.0.0.1:$PORT$1" | grep -q "$2" && return
    sleep 0.2
  done
  echo "$1 did not show $2"; exit 1
}
picture() {                   # picture NAME PATH
  timeout 60 chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
    --disable-component-update --disable-sync --disable-dev-shm-usage --user-data-dir="$PROFILE" --hide-scrollbars \
    --window-size=1200,"${3:-760}" --screenshot="$PWD/docs/images/$1.png" "http://127.0.0.1:$PORT$2" 2>/dev/null
}
mkdir -p docs/images
until_shows / "3 of 3 desired"
lab/host-down.sh host-a
until_shows /ui/vms/vm1 "success-"
until_shows / "3 of 3 desired"
picture overview / 900
picture fence /ui/vms/vm1 900
picture storages /ui/storages 500
