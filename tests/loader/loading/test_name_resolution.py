"""A name server that never answers: deadline and signals end a process all the same."""

from __future__ import annotations

import os
import select
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from support.preload_shims import RESOLVES_NOTHING, build_shim
from support.tonnage_cli import start_tonnage
from tonnage.errors import Interrupted
from tonnage.transfer import host_process, worker_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.load_harness import LoadHarness

COMPILER = shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, for a library with another getaddrinfo")
COMMANDS = {
    "load of S3": ("load", "s3://bucket/m/", "--anonymous", "--endpoint-url", "http://store.example"),
    "load of a URL": ("load", "http://store.example/model.tensors"),
    "resolve": ("resolve", "s3://bucket/m/", "--anonymous", "--endpoint-url", "http://store.example"),
}


class HangingResolver:
    """A resolver that never answers, for processes that are started with ``variables``."""

    def __init__(self, folder: Path) -> None:
        assert COMPILER is not None
        asked = folder / "asked"
        os.mkfifo(asked)
        self.variables = {
            "LD_PRELOAD": str(build_shim(RESOLVES_NOTHING, folder, compiler=COMPILER)),
            "LC_ASKED": str(asked),
        }
        self._asked = os.open(asked, os.O_RDWR)

    def wait_until_asked(self) -> None:
        assert os.read(self._asked, 1) == b"\n"

    def was_asked(self) -> bool:
        return bool(select.select([self._asked], [], [], 0)[0])

    def close(self) -> None:
        os.close(self._asked)


@pytest.fixture
def resolver(tmp_path: Path) -> Iterator[HangingResolver]:
    made = HangingResolver(tmp_path)
    yield made
    made.close()


def arguments(command: str, folder: Path) -> list[str]:
    cache = ["--cache", str(folder / "cache")] if command.startswith("load") else []
    return [*COMMANDS[command], *cache]


@pytest.mark.parametrize("command", COMMANDS)
def test_sigterm_ends_a_process_that_waits_for_a_name(command: str, resolver: HangingResolver, tmp_path: Path) -> None:
    with start_tonnage(*arguments(command, tmp_path), environment=resolver.variables) as process:
        resolver.wait_until_asked()
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=20)  # the resolver itself would never end
    assert process.returncode == 32
    assert "tonnage: Interrupted: " in stderr


def test_the_deadline_ends_a_load_that_waits_for_a_name(resolver: HangingResolver, tmp_path: Path) -> None:
    options = [*arguments("load of S3", tmp_path), "--timeout", "1s"]
    with start_tonnage(*options, environment=resolver.variables) as process:
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 31
    assert "tonnage: Timeout: " in stderr


def test_a_server_whose_name_is_never_resolved_is_unreachable(resolver: HangingResolver, tmp_path: Path) -> None:
    with start_tonnage(*arguments("load of S3", tmp_path), environment=resolver.variables) as process:
        _, stderr = process.communicate(timeout=30)
    assert "EndpointUnreachable" in stderr
    assert "store.example:80" in stderr


def test_workers_that_wait_for_a_name_end_by_themselves(
    harness: LoadHarness, resolver: HangingResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker that must be killed would add two seconds to the end of the load."""
    of_a_worker = host_process.worker_environment
    variables = {**resolver.variables, "http_proxy": "http://proxy.example:3128"}
    monkeypatch.setattr(host_process, "worker_environment", lambda given: of_a_worker(given) | variables)
    codes: list[int] = []
    close = worker_process.WorkerProcess.close

    def record(worker: worker_process.WorkerProcess) -> int:
        codes.append(close(worker))
        return codes[-1]

    monkeypatch.setattr(worker_process.WorkerProcess, "close", record)
    with pytest.raises(Interrupted):
        harness.load(canceled=resolver.was_asked)
    assert codes
    assert set(codes) == {0}
