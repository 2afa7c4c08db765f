#!/usr/bin/env bash
# book.sh: build docs/ as a book in target/book; check every link, anchor and image in it, and that it loads nothing
# from other sites. Links to other sites are not followed: the book is built without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
BOOK=target/book
rm -rf $BOOK
mdbook build docs
hyperlink --check-anchors $BOOK
if grep -rnoE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//[^"]*"|@import[^;]*//[^;]*|url\(["'\'']?(https?:)?//[^)]*' $BOOK --include='*.html' --include='*.css'; then
  echo "book loads files from another site, see above" >&2
  exit 1
fi
echo "book: $PWD/$BOOK/index.html"
