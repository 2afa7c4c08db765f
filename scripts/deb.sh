#!/usr/bin/env bash
# deb.sh: build the Debian packages ringfence and ringfence-agent in target/debian. PROFILE=campaign or dev builds
# faster than release; VERSION=0.1.0-2 replaces Cargo.toml's version with revision 1; OUT=DIR replaces the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
PROFILE=${PROFILE:-release}
OUT=${OUT:-target/debian}
VERSION=${VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)-1}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}

# C libraries are built again when this variable changes: only packages for users need reproducible ones.
[[ $PROFILE != release ]] || export SOURCE_DATE_EPOCH
cargo build --locked --profile "$PROFILE" --bin ringfence
export SOURCE_DATE_EPOCH
RINGFENCE=target/$([[ $PROFILE == dev ]] && echo debug || echo "$PROFILE")/ringfence

# Files that the program generates.
MADE=target/deb
rm -rf $MADE
mkdir -p $MADE/man "$OUT"
"$RINGFENCE" man $MADE/man
for shell in bash zsh fish; do "$RINGFENCE" completions $shell >$MADE/ringfence.$shell; done
cat >$MADE/changelog <<END
ringfence ($VERSION) unstable; urgency=medium

  * CHANGELOG.md of the source lists the changes.

 -- Ringfence maintainers <maintainers@ringfence.example>  $(LC_ALL=C date -R -u -d "@$SOURCE_DATE_EPOCH")
END

# Packages for tests need not be small.
FAST=(--fast)
[[ $PROFILE != release ]] || FAST=()
deb() {
  cargo deb "${FAST[@]}" --quiet --no-build --strip --locked --offline --package ringfence-cli --profile "$PROFILE" --deb-version "$VERSION" --output "$OUT/" "$@"
}
rm -f "$OUT"/ringfence_"$VERSION"_*.deb "$OUT"/ringfence-agent_"$VERSION"_*.deb
deb
deb --variant agent
