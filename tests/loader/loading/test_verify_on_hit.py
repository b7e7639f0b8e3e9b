"""``verify_on_hit``: an entry that others may have written is used only if it is what the source has."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

import tonnage
from support.child_processes import UNPRIVILEGED_UID, run_in_child
from support.faults import Fault
from support.load_harness import BOTH_KINDS, KEY
from support.models import make_tensors, to_tensors_file
from support.tonnage_cli import run_tonnage
from tonnage.cache import Entry
from tonnage.cache.manifest import encode_manifest, encode_table, table_record
from tonnage.contract import Layout, Limits, Outcome, Report
from tonnage.errors import AccessDenied, CacheDamaged, Interrupted
from tonnage.loading.expected_bytes import REQUEST_BYTES, SourceRange
from tonnage.loading.verify_on_hit import coalesce

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.load_harness import LoadHarness

ETAG = '"0123456789abcdef0123456789abcdef"'
LAYOUTS = pytest.mark.parametrize("layout", list(Layout))


def is_hit(report: Report) -> bool:
    return report.outcome is Outcome.HIT


def model_dir(report: Report) -> Path:
    return Path(report.path)


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Changes a published file, as only a process with write access to the cache can."""
    path.chmod(0o644)
    path.write_bytes(change(path.read_bytes()))
    path.chmod(0o444)


def weights_of(report: Report) -> Path:
    return max(model_dir(report).iterdir(), key=lambda path: path.stat().st_size)


def forge_by_imitation(harness: LoadHarness, **options: Any) -> Report:
    """Loads other weights of the same size under the same ETag, as from an imitation of the store."""
    harness.server.put(KEY, to_tensors_file(make_tensors(seed=99)), etag=ETAG)
    report = harness.load(**options)
    harness.server.put(KEY, harness.tensors_file, etag=ETAG)
    return report


@LAYOUTS
def test_an_unchanged_entry_is_a_hit_that_reads_no_tensor_again(harness: LoadHarness, layout: Layout) -> None:
    harness.load(layout=layout)
    sent = harness.server.bytes_sent
    report = harness.load(layout=layout, verify_on_hit=True)
    assert is_hit(report)
    assert any("was verified with the source" in note for note in report.notes)
    assert harness.server.bytes_sent - sent < len(harness.tensors_file) // 2


@LAYOUTS
def test_weights_from_an_imitated_store_are_replaced(harness: LoadHarness, layout: Layout) -> None:
    forged = forge_by_imitation(harness, layout=layout)
    assert run_tonnage("verify", forged.entry, "--cache", harness.cache).returncode == 0
    assert is_hit(harness.load(layout=layout))
    report = harness.load(layout=layout, verify_on_hit=True)
    assert report.outcome is Outcome.LOADED
    assert any("damaged and has been reloaded" in note and "other tensors" in note for note in report.notes)
    if layout is Layout.SAFETENSORS:
        harness.assert_loaded(report)
    else:
        assert weights_of(report).read_bytes() == harness.tensors_file
    assert is_hit(harness.load(layout=layout, verify_on_hit=True))


def flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def add_file(report: Report) -> None:
    (model_dir(report) / "modeling_tiny.py").write_bytes(b"raise SystemExit\n")


def replace_by_link(report: Report) -> None:
    config = model_dir(report) / "config.json"
    config.unlink()
    config.symlink_to("/etc/hostname")


def swap_tensors_in_the_header(data: bytes) -> bytes:
    """Gives two tensors of one shape each other's name; the header keeps its length."""
    return (
        data.replace(b"layers.0.weight", b"layers.X.weight")
        .replace(b"layers.4.weight", b"layers.0.weight")
        .replace(b"layers.X.weight", b"layers.4.weight")
    )


def swap_tensors_in_the_table(report: Report) -> None:
    """Exchanges two tensors' places in the table, and makes the manifest fit."""
    entry = Entry(model_dir(report).parent)
    published = entry.read_published()
    assert published is not None
    tensors = list(published.table.tensors)
    first, second = tensors[0], tensors[4]
    tensors[0] = msgspec.structs.replace(first, offset=second.offset)
    tensors[4] = msgspec.structs.replace(second, offset=first.offset)
    data = encode_table(msgspec.structs.replace(published.table, tensors=tuple(tensors)))
    record = table_record(data)
    (entry.private_dir / record.name).write_bytes(data)
    entry.manifest_path.write_bytes(encode_manifest(msgspec.structs.replace(published.manifest, table=record)))


CHANGES: dict[str, Callable[[Report], None]] = {
    "a tensor": lambda report: rewrite(weights_of(report), flip_last),
    "the header of a shard": lambda report: rewrite(weights_of(report), swap_tensors_in_the_header),
    "a companion": lambda report: rewrite(model_dir(report) / "config.json", flip_last),
    "another file": add_file,
    "a symbolic link": replace_by_link,
    "the table of tensors": swap_tensors_in_the_table,
}


@BOTH_KINDS
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_was_changed_is_noticed_and_loaded_again(
    harness: LoadHarness, change: Callable[[Report], None]
) -> None:
    change(harness.load())
    report = harness.load(verify_on_hit=True)
    assert report.outcome is Outcome.LOADED
    harness.assert_loaded(report)
    assert sorted(path.name for path in model_dir(report).iterdir()) == ["config.json", "model.safetensors"]
    assert is_hit(harness.load(verify_on_hit=True))


@pytest.mark.parametrize("place", ["head", "header", "tail"])
def test_bytes_outside_of_tensors_are_noticed_in_the_tensorizer_layout(harness: LoadHarness, place: str) -> None:
    at = {"head": 20, "header": harness.tensors_file.index(b"layers.", 262_217), "tail": -1}[place]

    def change(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[at] ^= 1
        return bytes(changed)

    rewrite(weights_of(harness.load(layout=Layout.TENSORIZER)), change)
    report = harness.load(layout=Layout.TENSORIZER, verify_on_hit=True)
    assert report.outcome is Outcome.LOADED
    assert weights_of(report).read_bytes() == harness.tensors_file


def test_tensors_without_a_sha256_are_read_from_the_source_again(harness: LoadHarness) -> None:
    from support.tensors_writer import build_tensors_file, raw_tensors

    data = bytes(build_tensors_file(raw_tensors(harness.tensors), hashes=("crc32",)).data)
    harness.server.put(KEY, data)
    loaded = harness.load()
    report = harness.load(verify_on_hit=True)
    assert is_hit(report)
    assert any("which has no SHA-256 of" in note for note in report.notes)
    rewrite(weights_of(loaded), flip_last)
    report = harness.load(verify_on_hit=True)
    assert report.outcome is Outcome.LOADED
    harness.assert_loaded(report)


def test_ranks_that_were_loaded_one_after_the_other_are_a_hit(harness: LoadHarness) -> None:
    harness.server.delete(KEY)
    for rank in range(2):
        harness.server.put(
            f"bucket/model/model-rank-00{rank}.tensors", to_tensors_file(make_tensors(seed=rank, count=2))
        )
    harness.load(ranks=[0])
    harness.load(ranks=[1], verify_on_hit=True)
    for ranks in ([0], [1], None):
        assert is_hit(harness.load(ranks=ranks, verify_on_hit=True))


def test_what_an_earlier_load_has_left_is_not_proven_by_its_journal(harness: LoadHarness) -> None:
    slow = Limits(workers=1, connections=2, part_size=100_000, bandwidth=1_000_000)
    harness.server.put(KEY, to_tensors_file(make_tensors(seed=99)), etag=ETAG)
    with pytest.raises(Interrupted):
        harness.load(limits=slow, canceled=lambda: harness.server.bytes_sent > 900_000)
    harness.server.put(KEY, harness.tensors_file, etag=ETAG)
    report = harness.load(verify_on_hit=True)
    assert any("an earlier load had left was damaged" in note for note in report.notes)
    harness.assert_loaded(report)


@pytest.mark.parametrize("forged", ["model.safetensors", "config.json"])
def test_safetensors_and_companions_are_verified_by_the_sha256_that_the_store_states(
    harness: LoadHarness, forged: str
) -> None:
    content = save(harness.tensors)
    for key, data in (("plain/model.safetensors", content), ("plain/config.json", b'{"a": 1}' * 9)):
        stated = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(data).digest()).decode()}
        harness.server.put(f"bucket/{key}", data, headers=stated)

    def load() -> Report:
        return tonnage.load(
            "s3://bucket/plain/", cache=harness.cache, endpoint_url=harness.server.endpoint, region="us-east-1",
            anonymous=True, environment={}, verify_on_hit=True,
        )  # fmt: skip

    first, sent = load(), harness.server.bytes_sent
    assert is_hit(report := load())
    assert not any("no SHA-256" in note for note in report.notes)
    assert harness.server.bytes_sent - sent < len(content) // 2
    rewrite(next(model_dir(first).rglob(forged)), flip_last)
    assert load().outcome is Outcome.LOADED
    assert is_hit(load())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_an_entry_that_this_user_cant_replace_is_refused(harness: LoadHarness) -> None:
    def attempt() -> None:
        with pytest.raises(CacheDamaged, match=r"has another SHA-256, at offset") as caught:
            harness.load(verify_on_hit=True)
        assert caught.value.remedy.startswith("Find out who may write to this cache")

    folder = Path(tempfile.mkdtemp(prefix="tonnage-test-", dir="/dev/shm"))
    try:
        folder.chmod(0o755)
        harness.cache = folder
        rewrite(weights_of(harness.load()), flip_last)
        assert run_in_child(attempt, uid=UNPRIVILEGED_UID) == 0
    finally:
        shutil.rmtree(folder)


def test_hashes_are_read_with_the_callers_own_identity(harness: LoadHarness) -> None:
    harness.load()
    denied = Fault(status=403, body=b"<Error><Code>AccessDenied</Code></Error>")
    harness.server.add_fault(denied, key=KEY, when=lambda request: request.method == "GET")
    assert is_hit(harness.load())
    with pytest.raises(AccessDenied):
        harness.load(verify_on_hit=True)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1 << 24), st.integers(1, 1 << 16)), max_size=30),
    st.integers(0, 1 << 20),
)
def test_ranges_that_are_read_together_contain_each_wanted_one(drawn: list[tuple[int, int, int]], gap: int) -> None:
    wanted: list[SourceRange] = []
    for item, start, length in sorted(drawn):
        if not wanted or wanted[-1].item < item or wanted[-1].end <= start:
            wanted.append(SourceRange(item, start, start + length))
    found = coalesce(wanted, gap=gap)
    position = 0
    for each in found:
        assert each.end - each.start <= REQUEST_BYTES
        while position < len(wanted) and wanted[position].item == each.item and wanted[position].end <= each.end:
            assert each.start <= wanted[position].start
            position += 1
    assert position == len(wanted)
