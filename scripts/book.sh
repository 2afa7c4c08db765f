#!/usr/bin/env bash
# book.sh: docs/ as a book into target/book; every link, anchor and image within it leads somewhere, and it loads nothing
# from elsewhere. Links to other sites are not followed: the book is built without a network.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
BOOK=target/book
rm -rf $BOOK
mdbook build docs
hyperlink --check-anchors $BOOK
if grep -rnoE '<(script|link|img|iframe)[^>]+(src|href)="(https?:)?//[^"]*"|@import[^;]*//[^;]*|url\(["'\'']?(https?:)?//[^)]*' $BOOK --include='*.html' --include='*.css'; then
  echo "the book loads something from another site, see above" >&2
  exit 1
fi
echo "the book: $PWD/$BOOK/index.html"
