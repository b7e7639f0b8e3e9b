"""A real vLLM starts while its weights are loaded: ``tonnage.dev/wait: Streaming`` and ``--load-format tonnage``."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from engines_support.engine_matrix import SAME, compare
from support.faults import Fault
from tonnage.contract import Limits
from tonnage.errors import TonnageError
from tonnage.loading import run_plan
from tonnage.loading.api import make_plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from engines_support.engine_client import Engines
    from support.faulty_server import FaultyServer

WEIGHTS = "bucket/llama/model.tensors"
LIMITS = Limits(workers=2, connections=2, part_size=64 << 10, segment_size=128 << 10)
DENIED = Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")

pytestmark = pytest.mark.timeout(900)


class StreamingPod:
    """A loader of which the store sends only the first half, and the directory that the engine sees."""

    def __init__(self, server: FaultyServer, source: Path, folder: Path) -> None:
        self._server = server
        self._folder = folder
        self.model = folder / "models" / "llama"
        self.status = folder / "models" / ".tonnage" / "llama" / "status"
        self.status.parent.mkdir(parents=True)
        data = (source / "state" / "model.tensors").read_bytes()
        self._half = len(data) // 2
        server.put(WEIGHTS, data)
        for companion in (source / "hf").glob("*.json"):
            server.put(f"bucket/llama/{companion.name}", companion.read_bytes())
        self.hold_back(Fault(stall_before=True))

    def hold_back(self, fault: Fault) -> None:
        self._server.clear_faults()
        self._server.add_fault(
            fault,
            when=lambda each: each.method == "GET" and each.key == WEIGHTS and (each.range or (0,))[0] > self._half,
        )

    def release(self) -> None:
        self._server.clear_faults()
        self._server.release_stalled()

    def deny(self) -> None:
        self.hold_back(DENIED)
        self._server.release_stalled()

    def load(self, readable: threading.Event) -> None:
        plan = make_plan(
            "s3://bucket/llama/", limits=LIMITS, endpoint_url=self._server.endpoint, region="us-east-1", anonymous=True
        )
        cache = self._folder / "cache"

        def let_in(entry: str) -> None:
            self.model.symlink_to(cache / entry / "stream")
            readable.set()

        try:
            run_plan(plan, cache=cache, environment={"TONNAGE_STALL_SECONDS": "300"}, on_readable=let_in)
        except TonnageError as error:
            self.status.write_text(f"failed\n{error.reason}\n{error.message}\n")
            raise

    def wait_for_engine(self, answer: Future[Any]) -> None:
        """Waits until a process has read a shard."""
        shards = str((self.model / "tonnage-shards").resolve())
        deadline = time.monotonic() + 240
        while not any(shards in maps for maps in _all_maps()):
            assert not answer.done(), answer
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _all_maps() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            yield process.read_text()


@pytest.mark.parametrize(("fails", "ranks"), [(False, 1), (True, 1), (False, 2)], ids=["loaded", "failed", "2 ranks"])
def test_vllm_starts_before_its_weights_are_loaded(
    engines: Engines,
    models: Path,
    expected: dict[tuple[str, int], dict[str, Any]],
    faulty_server: FaultyServer,
    tmp_path: Path,
    *,
    fails: bool,
    ranks: int,
) -> None:
    pod = StreamingPod(faulty_server, models / "llama", tmp_path)
    readable = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        load = pool.submit(pod.load, readable)
        assert readable.wait(60), load.exception(1)
        answer = pool.submit(engines.ask, "generate", model=str(pod.model), load_format="tonnage", ranks=ranks)
        pod.wait_for_engine(answer)
        assert not load.done()
        if fails:
            pod.deny()
            found = answer.result(600)
            assert "AccessDenied: " in found["message"]
            assert "Allow s3:GetObject on the objects" in found["message"]
            return
        pod.release()
        found = answer.result(600)
        load.result(60)
    assert compare(found, expected["llama", ranks]) == SAME


def test_vllm_without_the_load_format_refuses_the_directory_even_when_all_is_there(
    engines: Engines, models: Path, faulty_server: FaultyServer, tmp_path: Path
) -> None:
    """It would take some shards for all of them."""
    pod = StreamingPod(faulty_server, models / "llama", tmp_path)
    pod.release()
    pod.load(threading.Event())
    found = engines.ask("generate", model=str(pod.model))
    assert "Cannot find any model weights" in found["message"]
