#!/bin/sh
# Prepares .venv for one purpose: `setup.sh test|lint|bench`. Does nothing when that is done already.
#
# On a fresh Debian it installs what Python itself lacks there by apt-get, if it may. Everything else comes from PyPI,
# pinned by requirements/*.txt. Settings of this machine for pip and uv (PIP_*, UV_*, pip.conf) are honoured.
set -eu
cd "$(dirname "$0")/../.."

purpose=$1
venv=.venv
python=$venv/bin/python
requirements=requirements/$purpose.txt
stamp=$venv/.ready-$purpose

say() { printf '%s\n' "setup: $*" >&2; }

# What the stamp must say for the work to be done: the same pins, script and package metadata, in the same place.
metadata() { sed '/^\[tool\.pytest/,$d' pyproject.toml; }
wanted=$(pwd; { metadata; cat "$0" "$requirements" requirements/uv.txt; } | cksum)
if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

# apt_get PROGRAM PACKAGE…: installs the packages; says what to do where this user may not.
apt_updated=
apt_get() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "please install (as root): apt-get install $*"
        return 1
    fi
    say "installing $* (apt-get)"
    if [ -z "$apt_updated" ]; then
        apt-get update -qq >/dev/null
        apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3} python3.13 python3.12 python3.11; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

if [ ! -x "$python" ] || ! new_enough "$python"; then
    base=$(find_python) || { apt_get python3 python3-venv && base=$(find_python); } || {
        say "Python 3.11 or later is needed (set PYTHON to its path)."
        exit 1
    }
    "$base" -c 'import ensurepip' 2>/dev/null ||
        apt_get "python$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" || exit 1
    say "creating $venv with $("$base" --version)"
    rm -rf "$venv"
    "$base" -m venv "$venv"
fi

# tensorizer's encrypted files, which the tests write and read, need libsodium; the benchmark its server and its limit.
has_library() { "$python" -c "import ctypes.util, sys; sys.exit(not ctypes.util.find_library('$1'))"; }
case $purpose in
test | lint) has_library sodium || apt_get libsodium23 || say "without it, tests of encrypted files are skipped." ;;
bench)
    command -v curl >/dev/null || apt_get curl || say "without it, that contender is skipped."
    command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || apt_get nginx-light ||
        say "without it, the benchmark serves by its own sendfile server."
    ;;
esac

# uv installs the wheels in a fraction of pip's time. It doesn't read pip's settings, so hand over those that matter.
pip_setting() { "$python" -m pip config get "$1" 2>/dev/null || true; }
install() {
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt || return 1
    index=${PIP_INDEX_URL:-$(pip_setting global.index-url)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
        export UV_DEFAULT_INDEX="$index"
    fi
    if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then
        export SSL_CERT_FILE="$PIP_CERT"
    fi
    UV_LINK_MODE=${UV_LINK_MODE:-$(link_mode)} "$venv/bin/uv" pip install --quiet --python "$python" \
        --require-hashes -r "$requirements"
}
install_by_pip() { "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r "$requirements"; }

# Hard links into uv's cache are quickest, where both are on one filesystem; uv warns otherwise.
link_mode() {
    cache=$("$venv/bin/uv" cache dir)
    mkdir -p "$cache"
    if [ "$(stat -c %d "$cache")" = "$(stat -c %d "$venv")" ]; then echo hardlink; else echo copy; fi
}

say "installing $requirements"
install || {
    say "uv did not manage; trying pip"
    install_by_pip
}

# The project itself, editable: the source tree is what runs.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
printf '%s\n' "$wanted" > "$stamp"
