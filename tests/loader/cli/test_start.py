"""A cache hit is cheap: its imports, and the processor's time of the whole process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
from safetensors.torch import save

from support.hub_server import HubServer
from support.tonnage_cli import CommandResult, command_environment, run_tonnage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loader.cli.conftest import Model
    from support.s3_server import SeaweedS3

EXPENSIVE = {
    "rich", "botocore", "boto3", "torch", "numpy", "safetensors", "tensorizer", "isal", "asyncio", "http.client",
    "urllib.request", "logging", "multiprocessing", "concurrent.futures", "ssl", "socket", "shutil", "tempfile",
    "traceback", "difflib",
}  # fmt: skip
HIT_SECONDS = 0.15


def modules_of(args: list[str], environment: dict[str, str]) -> set[str]:
    """Returns the modules that a run imports."""
    program = (
        "import sys; from tonnage.cli.main import main; code = main(sys.argv[1:]);"
        "print('\\n' + ' '.join(sys.modules)); sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, *args],
        env=command_environment(environment), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(found.stdout.rpartition("\n\n")[2].split())


class Loaded(NamedTuple):
    """A source of which a cache has the entry, and the variables to read it."""

    arguments: list[str]
    environment: dict[str, str]


@pytest.fixture(scope="module", params=["tensors", "safetensors", "hub"])
def hit(
    request: pytest.FixtureRequest,
    loaded: tuple[Path, CommandResult],
    model: Model,
    s3: SeaweedS3,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Loaded]:
    """A load that is a hit: of a ``.tensors`` file or safetensors files in S3, or of these files on a hub."""
    if request.param == "tensors":
        yield Loaded(["load", model.source, "--cache", str(loaded[0])], model.environment)
        return
    names = list(model.tensors)
    files = {
        f"model-0000{at}-of-00002.safetensors": save({name: model.tensors[name] for name in names[at - 1 :: 2]})
        for at in (1, 2)
    }
    listed = {name: f"model-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(names)}
    index = json.dumps({"metadata": {}, "weight_map": listed}).encode()
    files |= {"config.json": b"{}", "model.safetensors.index.json": index}
    cache = tmp_path_factory.mktemp("cache")
    with HubServer() as hub:
        if request.param == "hub":
            hub.push("org/tiny", files)
            source, environment = "hf://org/tiny", {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token}
        else:
            s3.put(model.bucket, {f"plain/{name}": data for name, data in files.items()})
            source, environment = f"s3://{model.bucket}/plain/", model.environment
        arguments = ["load", source, "--cache", str(cache)]
        assert run_tonnage(*arguments, environment=environment).report["outcome"] == "loaded"
        yield Loaded(arguments, environment)


def test_a_hit_imports_nothing_expensive(hit: Loaded) -> None:
    modules = modules_of(hit.arguments, hit.environment)
    assert "tonnage.loading.load" in modules
    assert not EXPENSIVE & modules


def test_help_and_version_import_no_loader() -> None:
    modules = modules_of(["version"], {})
    assert not {name for name in modules if name.startswith(("tonnage.loading", "tonnage.source", "pycurl"))}
    assert not EXPENSIVE & modules


def test_a_listing_for_a_pipe_does_not_import_rich(loaded: tuple[Path, CommandResult]) -> None:
    assert not EXPENSIVE & modules_of(["ls", "--cache", str(loaded[0])], {})


def test_a_hit_takes_milliseconds(hit: Loaded) -> None:
    """Counts the processor's time, which other processes change little, and takes the least of several runs."""
    args = [sys.executable, "-c", "import sys; from tonnage.cli.main import main; sys.exit(main(sys.argv[1:]))"]
    args += hit.arguments
    environment = {
        name: value for name, value in command_environment(hit.environment).items() if name != "PYTHONWARNINGS"
    }
    took = []
    for _ in range(8):
        process = subprocess.Popen(args, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        took.append(usage.ru_utime + usage.ru_stime)
    assert min(took) <= HIT_SECONDS
