# Sourced by quickstart.sh and test.sh: one virtual environment, .venv, for both.
#   install_topklm EXTRA   make it if needed, install this checkout with an extra, and activate it

install_topklm() {
    local python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "topklm needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2
        return 1
    }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # shellcheck disable=SC1091
    source .venv/bin/activate
    # Installed again only when the requirements have changed.
    local stamp=".venv/installed-$1" wanted
    wanted="$(cksum <pyproject.toml)"
    if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
        echo "== installing topklm[$1]"
        python -m pip install --quiet --disable-pip-version-check --editable ".[$1]"
        echo "$wanted" >"$stamp"
    fi
}
