#!/bin/sh
# Prepares .venv for one purpose: `setup.sh test|lint|bench`. Does nothing if it is up to date.
#
# As root on Debian it installs missing system packages with apt-get. Everything else comes from PyPI, pinned by
# requirements/*.txt. This machine's settings of pip and uv (PIP_*, UV_*, pip.conf) are used.
set -eu
cd "$(dirname "$0")/../.."

purpose=$1
venv=.venv
python=$venv/bin/python
requirements=requirements/$purpose.txt

log() { printf '%s\n' "setup: $*" >&2; }

# What the stamp of an up-to-date .venv for a purpose has: pins, this script, package metadata, what is compiled, and the
# path of the clone.
metadata() { sed '/^\[tool\.pytest/,$d' pyproject.toml; }
wanted() {
    pwd
    { metadata; cat "$0" "requirements/$1.txt" requirements/uv.txt loader/native/*.*; } | cksum
}
if [ -x "$python" ] && [ "$(cat "$venv/.ready-$purpose" 2>/dev/null)" = "$(wanted "$purpose")" ]; then
    exit 0
fi

# apt_get PACKAGE…: installs the packages, or prints the command if this user may not.
apt_updated=
apt_get() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        log "please install (as root): apt-get install $*"
        return 1
    fi
    log "installing $* (apt-get)"
    if [ -z "$apt_updated" ]; then
        apt-get update -qq >/dev/null
        apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}

# Puts Debian's nginx into .venv/nginx: to install its package would start a server on port 80.
unpack_nginx() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    log "unpacking nginx into $venv (apt-get)"
    folder=$(mktemp -d)
    [ "$(id -u)" != 0 ] || [ -n "$apt_updated" ] || apt-get update -qq >/dev/null
    (cd "$folder" && apt-get -qq -o APT::Sandbox::User=root download nginx && dpkg -x nginx_*.deb .) >/dev/null &&
        install -D -m 755 "$folder/usr/sbin/nginx" "$venv/nginx/nginx" && found=yes || found=no
    rm -rf "$folder"
    [ $found = yes ] && hack/env/kept.sh save nginx "$venv/nginx"
}
has_nginx() { command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || [ -x "$venv/nginx/nginx" ]; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

has_venv() { "$1" -c 'import ensurepip' 2>/dev/null; }

# The distribution's Python comes first: those that a version manager compiles are a fifth slower.
find_python() {
    for candidate in ${PYTHON:-/usr/bin/python3 python3} python3.13 python3.12 python3.11; do
        if new_enough "$candidate" && { has_venv "$candidate" || add_venv "$candidate"; }; then
            echo "$candidate"
            return
        fi
    done
    return 1
}

# add_venv PYTHON: as root, installs what a distribution's Python needs to create environments.
add_venv() {
    [ "$(id -u)" = 0 ] && [ "${1#/usr/bin/}" != "$1" ] || return 1
    apt_get "python$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2
}

if [ ! -x "$python" ] || ! new_enough "$python"; then
    base=$(find_python) || { apt_get python3 python3-venv && base=$(find_python); } || {
        log "Python 3.11 or later with venv is required. Install it, or set PYTHON to its path."
        exit 1
    }
    log "creating $venv with $("$base" --version)"
    rm -rf "$venv"
    "$base" -m venv "$venv"
fi

# Tests of tensorizer's encrypted files need libsodium, those of peers and the benchmark nginx, the benchmark also curl.
has_library() { "$python" -c "import ctypes.util, sys; sys.exit(not ctypes.util.find_library('$1'))"; }
has_library sodium || apt_get libsodium23 || log "libsodium is missing; tests of encrypted files will be skipped"
has_nginx || hack/env/kept.sh restore nginx "$venv/nginx"
has_nginx || unpack_nginx ||
    log "nginx is missing, please install it: tests of peers will fail, and the benchmark will use its own server"
if [ "$purpose" = bench ]; then
    command -v curl >/dev/null || apt_get curl || log "curl is missing; the benchmark will skip it"
fi

# uv is several times faster than pip. It doesn't read pip's settings, so pass the index and the CA.
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

# Hard links into uv's cache are fastest, but need the same file system; otherwise uv would print a warning.
link_mode() {
    cache=$("$venv/bin/uv" cache dir)
    mkdir -p "$cache"
    if [ "$(stat -c %d "$cache")" = "$(stat -c %d "$venv")" ]; then echo hardlink; else echo copy; fi
}

log "installing $requirements"
install || {
    log "uv failed; trying pip"
    install_by_pip
}

# The project itself, editable.
"$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
hack/env/kept.sh restore bytecode "$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
for ready in "$purpose" test; do # lint.txt and bench.txt have all of test.txt: see lock.sh
    wanted "$ready" > "$venv/.ready-$ready"
done
