#!/usr/bin/env bash
# deb.sh: the Debian packages ringfence and ringfence-agent, into target/debian. PROFILE=campaign or dev is quicker to build
# than release; VERSION=0.1.0-2 names another version than Cargo.toml's with revision 1; OUT=DIR another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
PROFILE=${PROFILE:-release}
OUT=${OUT:-target/debian}
VERSION=${VERSION:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)-1}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export SOURCE_DATE_EPOCH

cargo build --locked --profile "$PROFILE" --bin ringfence
RINGFENCE=target/$([[ $PROFILE == dev ]] && echo debug || echo "$PROFILE")/ringfence

# What the program says of itself.
MADE=target/deb
rm -rf $MADE
mkdir -p $MADE/man "$OUT"
"$RINGFENCE" man $MADE/man
for shell in bash zsh fish; do "$RINGFENCE" completions $shell >$MADE/ringfence.$shell; done
cat >$MADE/changelog <<END
ringfence ($VERSION) unstable; urgency=medium

  * Changes are told in CHANGELOG.md of the source.

 -- Ringfence maintainers <maintainers@ringfence.example>  $(LC_ALL=C date -R -u -d "@$SOURCE_DATE_EPOCH")
END

# What nobody ships need not be small.
FAST=(--fast)
[[ $PROFILE != release ]] || FAST=()
deb() {
  cargo deb "${FAST[@]}" --quiet --no-build --strip --locked --offline --package ringfence-cli --profile "$PROFILE" --deb-version "$VERSION" --output "$OUT/" "$@"
}
rm -f "$OUT"/ringfence_"$VERSION"_*.deb "$OUT"/ringfence-agent_"$VERSION"_*.deb
deb
deb --variant agent
