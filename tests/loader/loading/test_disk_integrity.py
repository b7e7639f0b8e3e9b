"""What an interrupted load has left is read again, whatever has happened to it since."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.faults import Fault
from support.load_harness import KEY, SLOW_LIMITS
from support.models import CONFIG
from support.tonnage_cli import run_tonnage
from tonnage.contract import Layout, Verify
from tonnage.errors import CacheDamaged, Interrupted

if TYPE_CHECKING:
    from support.load_harness import IsPartRequest, LoadHarness

WAYS = pytest.mark.parametrize(
    ("weights_kind", "layout"),
    [("tensors", Layout.SAFETENSORS), ("tensors", Layout.TENSORIZER), ("safetensors", Layout.SAFETENSORS)],
    indirect=["weights_kind"],
)
"""The kinds of files with weights, each with the layouts that it can have in the cache."""


def interrupt(harness: LoadHarness, layout: Layout, *, after: float) -> list[Path]:
    """Loads until a part of the bytes has arrived; returns the files that are left."""
    enough = harness.body + after * (len(harness.tensors_file) - harness.body)
    with pytest.raises(Interrupted):
        harness.load(layout=layout, canceled=lambda: harness.server.bytes_sent > enough, limits=SLOW_LIMITS)
    found = [path for path in harness.cache.glob("*/.tonnage/partial/**/*") if path.is_file() and path.suffix]
    assert found
    return found


def zero(path: Path, start: int, end: int) -> None:
    """Overwrites bytes with zeros: what a file system shows of pages that a crash has destroyed."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(end - start))


def assert_identical(harness: LoadHarness, layout: Layout, report: object) -> None:
    folder = Path(getattr(report, "path", ""))
    assert (folder / "config.json").read_bytes() == CONFIG
    if layout is Layout.TENSORIZER or harness.key != KEY:
        assert (folder / Path(harness.key).name).read_bytes() == harness.tensors_file
    if layout is Layout.SAFETENSORS:
        harness.assert_loaded(report)  # type: ignore[arg-type]
    checked = run_tonnage("verify", folder.parent.name, "--cache", harness.cache)
    assert checked.returncode == 0, checked.output


@WAYS
@pytest.mark.parametrize("level", [Verify.CRC32, Verify.NONE])
def test_bytes_that_were_damaged_since_are_fetched_again(harness: LoadHarness, layout: Layout, level: Verify) -> None:
    for path in interrupt(harness, layout, after=0.6):
        zero(path, 0, path.stat().st_size)
    report = harness.load(layout=layout, verify=level)
    assert report.resumed_bytes == 0
    assert_identical(harness, layout, report)


@WAYS
def test_only_what_was_damaged_is_fetched_again(harness: LoadHarness, layout: Layout) -> None:
    victim = max(interrupt(harness, layout, after=0.7), key=lambda path: path.stat().st_size)
    zero(victim, victim.stat().st_size // 4, victim.stat().st_size // 4 + 10)
    report = harness.load(layout=layout)
    assert report.resumed_bytes > 0
    assert_identical(harness, layout, report)


def test_a_tensors_header_that_was_lost_is_fetched_again(harness: LoadHarness) -> None:
    victim = next(path for path in interrupt(harness, Layout.TENSORIZER, after=0.7) if path.suffix == ".tensors")
    headers = [
        found.start() - 13 for found in re.finditer(rb"layers\.", victim.read_bytes()) if found.start() > harness.body
    ]
    assert headers
    for at in headers:
        zero(victim, at, at + 30)
    report = harness.load(layout=Layout.TENSORIZER)
    assert_identical(harness, Layout.TENSORIZER, report)


@pytest.mark.parametrize(
    ("weights_kind", "place"),
    [("tensors", "prefix"), ("tensors", "header"), ("safetensors", "prefix")],
    indirect=["weights_kind"],
)
def test_bytes_outside_of_tensors_that_change_during_the_load_are_not_published(
    harness: LoadHarness, is_part_request: IsPartRequest, place: str
) -> None:
    at = 1 if place == "prefix" else harness.tensors_file.index(b"layers.", harness.body)
    name = Path(harness.key).name
    layout = Layout.TENSORIZER if harness.key == KEY else Layout.SAFETENSORS
    damaged: list[Path] = []

    def damage() -> bool:
        """Flips a bit as soon as the load has written the byte; then the last part may arrive."""
        for path in harness.cache.glob(f"*/.tonnage/partial/**/{name}") if not damaged else ():
            with path.open("r+b") as file:
                file.seek(at)
                if file.read(1) == harness.tensors_file[at : at + 1]:
                    file.seek(at)
                    file.write(bytes([harness.tensors_file[at] ^ 1]))
                    damaged.append(path)
                    harness.server.clear_faults()
                    harness.server.release_stalled()
        return False

    def has_the_end(request: Any) -> bool:
        return is_part_request(request) and request.range[1] == len(harness.tensors_file) - 1

    harness.server.add_fault(Fault(stall_before=True), when=has_the_end)
    with pytest.raises(CacheDamaged, match="was changed while it was loaded"):
        harness.load(layout=layout, canceled=damage)
    assert damaged
    harness.assert_nothing_visible()
    assert_identical(harness, layout, harness.load(layout=layout))
