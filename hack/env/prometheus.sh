#!/bin/sh
# Prints the path of a Prometheus for the tests: the one on the path, or that of Debian's package, unpacked in a cache
# outside the clone, because installing it starts a server. Exits with 3, and the reason on standard error, if this machine
# can't have it.
set -eu
command -v prometheus && exit 0
folder=${XDG_CACHE_HOME:-$HOME/.cache}/tonnage/prometheus
program=$folder/usr/bin/prometheus
unavailable() {
    printf '%s\n' "prometheus: $*" >&2
    exit 3
}

if [ ! -x "$program" ]; then
    command -v apt-get >/dev/null || unavailable "not installed, and this machine has no apt-get"
    mkdir -p "${folder%/*}"
    work=$(mktemp -d "$folder.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    cd "$work"
    apt-get download -qq prometheus >/dev/null 2>&1 || {
        apt-get update -qq && apt-get download -qq prometheus
    } >/dev/null 2>&1 || unavailable "Debian's package can't be downloaded"
    mkdir files
    dpkg -x prometheus_*.deb files
    rm -rf "$folder"
    mv files "$folder" 2>/dev/null || [ -x "$program" ] # another test may have been faster
fi
echo "$program"
