#!/bin/sh
# Pins what the project installs: one file a purpose, every version exact, every wheel by its hash. `make lock` runs it
# after a change of pyproject.toml; with the argument --upgrade it takes newer versions too.
set -eu
cd "$(dirname "$0")/../.."

uv=${UV:-.venv/bin/uv}
whole=$(mktemp)
trap 'rm -f "$whole"' EXIT

# --universal: one file serves every Python from 3.11 on. No index is named, so that a machine's own settings count.
compile() {
    output=$1
    shift
    groups_alone "$output" pyproject.toml "$@"
}

# The same for dependency groups without the project itself.
groups_alone() {
    output=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file "$output" "$@"
}

# What is pinned already stays, unless asked otherwise; then all files take their versions from one resolution.
for file in runtime test lint bench; do
    if [ "${1:-}" != --upgrade ] && [ -f "requirements/$file.txt" ]; then
        cat "requirements/$file.txt" >> "$whole"
    fi
done
compile "$whole" --all-extras --group build --group test --group lint --group bench
rm -f requirements/runtime.txt requirements/test.txt requirements/lint.txt requirements/bench.txt requirements/image-*.txt
compile requirements/runtime.txt --constraints "$whole"
compile requirements/test.txt --constraints "$whole" --all-extras --group build --group test
compile requirements/lint.txt --constraints "$whole" --all-extras --group build --group test --group lint
compile requirements/bench.txt --constraints "$whole" --all-extras --group build --group test --group bench
# The images: what the loader's needs is runtime.txt.
compile requirements/image-operator.txt --constraints "$whole" --extra operator
groups_alone requirements/image-build.txt --constraints "$whole" --group build
echo 'uv==0.13.9' | "$uv" pip compile - --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements/uv.txt
