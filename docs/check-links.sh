#!/bin/sh
# Verifies the relative links and anchors of all Markdown files of the repository.
#
#   sh docs/check-links.sh [FILE.md ...]    all tracked and new Markdown files by default
#
# Prints one line for each broken link and exits 1. Uses sh, grep, sed, sort and git only.
# Three rules:
#   1. the file of a relative link exists;
#   2. the anchor of a link is a heading of that file, spelled as GitHub and mdBook spell it;
#   3. every chapter in docs/ is listed in docs/SUMMARY.md and links to nothing outside docs/,
#      because mdBook does not render what lies outside.
set -eu
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM

# A Markdown file without fenced blocks and without inline code.
text() {
    # shellcheck disable=SC2016 # backquotes of Markdown
    sed -e '/^ *```/,/^ *```/d' -e 's/`[^`]*`//g' "$1"
}

# The anchors of a file, one per line. A second heading of the same name would get `-1`: such
# headings are reported as broken when they are linked, so give them different names.
anchors() {
    # shellcheck disable=SC2016 # backquotes of Markdown
    sed -e '/^ *```/,/^ *```/d' "$1" |
        sed -n -e 's/^##* *//p' |
        sed -e 's/\[\([^]]*\)\]([^)]*)/\1/g' |
        tr '[:upper:]' '[:lower:]' |
        sed -e "s/[][\`.,:;!?()'\"*/+=<>&%#@|{}\\]//g" -e 's/ /-/g'
}

# The targets of links and images in a file: `](target)` and `[name]: target`.
targets() {
    text "$1" | grep -o '\]([^)]*)' | sed -e 's/^](//' -e 's/)$//' -e 's/ ".*"$//' || true
    text "$1" | sed -n -e 's/^\[[^]]*\]: *\([^ ]*\).*/\1/p'
}

# The anchors of a file are computed once.
cached_anchors() {
    cache=$tmp/$(printf '%s' "$1" | tr '/' '+')
    [ -e "$cache" ] || anchors "$1" >"$cache"
    printf '%s\n' "$cache"
}

if [ $# -eq 0 ]; then
    # Both tracked and new files, without what git ignores.
    git ls-files --cached --others --exclude-standard -- '*.md' | sort -u >"$tmp/files"
else
    printf '%s\n' "$@" >"$tmp/files"
fi

: >"$tmp/broken"
while IFS= read -r file; do
    [ -f "$file" ] || continue
    folder=$(dirname "$file")
    targets "$file" | sort -u >"$tmp/targets"
    while IFS= read -r target; do
        case $target in
        '' | *://* | mailto:*) continue ;;
        esac
        path=${target%%#*}
        anchor=
        case $target in *'#'*) anchor=${target#*#} ;; esac
        linked=$file
        [ -z "$path" ] || linked=$folder/$path
        if [ ! -e "$linked" ]; then
            echo "$file: $target: no such file" >>"$tmp/broken"
            continue
        fi
        case $file:$path in
        docs/*:*../*) echo "$file: $target: outside of the book" >>"$tmp/broken" ;;
        esac
        [ -n "$anchor" ] || continue
        case $linked in
        *.md) ;;
        *) continue ;;
        esac
        if ! grep -qxF -- "$anchor" "$(cached_anchors "$linked")"; then
            echo "$file: $target: no such heading" >>"$tmp/broken"
        fi
    done <"$tmp/targets"
    case $file in
    docs/SUMMARY.md) ;;
    docs/*.md)
        grep -qF "(${file#docs/})" docs/SUMMARY.md ||
            echo "$file: not listed in docs/SUMMARY.md" >>"$tmp/broken"
        ;;
    esac
done <"$tmp/files"

if [ -s "$tmp/broken" ]; then
    cat "$tmp/broken"
    exit 1
fi
echo "links: $(grep -c . "$tmp/files") files are right"
