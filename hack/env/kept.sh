#!/bin/sh
# Keeps between clones what each would make again: mypy's cache, the bytecode of installed packages, nginx.
#
#   hack/env/kept.sh save NAME FOLDER [PATTERN]   keeps the files of FOLDER whose names match PATTERN (all)
#   hack/env/kept.sh restore NAME FOLDER          adds what was kept to FOLDER; nothing if there is none
#
# It is kept outside the clone, for the pinned versions and this Python: with others most would be worth nothing. Python and
# mypy compare it with the sources and replace what does not match, so it is never wrong, only more or less useful.
# Where it can't be kept, as on a full disk, that is printed, and no command fails.
set -eu
cd "$(dirname "$0")/../.."

python=.venv/bin/python
place=${XDG_CACHE_HOME:-$HOME/.cache}/tonnage/kept
archive=$place/$2-$({ cat requirements/lint.txt; "$python" -VV; } | cksum | cut -d ' ' -f 1).tar

save() {
    part=$archive.$$
    trap 'rm -f "$part"' EXIT
    mkdir -p "$place" &&
        (cd "$2" && find . -type f -name "${3:-*}" -print0) | tar -C "$2" --null -T - -cf "$part" &&
        mv "$part" "$archive" &&
        find "$place" -name "$1-*" ! -path "$archive" -mtime +7 -delete # of earlier versions
}

restore() {
    [ ! -e "$archive" ] || { mkdir -p "$2" && tar -C "$2" --skip-old-files -xf "$archive"; }
}

"$@" || printf '%s\n' "kept: $* failed; the next clone computes it again" >&2
