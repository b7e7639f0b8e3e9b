"""The journal lists only what is on disk, even if its end is incomplete or corrupt."""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.cache_entries import journal_header, make_sample
from support.child_processes import ChildProcess, kill_self, run_in_child
from tonnage.cache import Journal
from tonnage.cache.journal import make_frame, read_frames, read_journal
from tonnage.errors import CacheNotWritable, InsufficientSpace, InternalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.child_processes import SendLine

HEADER = journal_header(make_sample().manifest)
RECORDS = [b'{"segment":0,"start":0,"end":4096}', b"", b"line\nbreak", b"\0" * 3000]


def written(path: Path, records: list[bytes] = RECORDS) -> Path:
    with Journal.create(path, HEADER) as journal:
        for record in records:
            journal.append(record)
    return path


def replayed(path: Path) -> list[bytes]:
    journal = read_journal(path)
    assert journal is not None
    assert journal.header == HEADER
    return journal.records


def test_records_come_back_in_order(tmp_path: Path) -> None:
    assert replayed(written(tmp_path / "parts")) == RECORDS


def test_a_missing_journal_is_none(tmp_path: Path) -> None:
    assert read_journal(tmp_path / "parts") is None


@pytest.mark.parametrize("garbage", [b"", b"\0" * 4096, b"\xff" * 64, make_frame(b"no header"), make_frame(b"{}")])
def test_a_journal_without_a_readable_header_is_none(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "parts"
    path.write_bytes(garbage)
    assert read_journal(path) is None


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
@settings(deadline=None, max_examples=50)
def test_a_truncated_journal_keeps_exactly_the_complete_records(records: list[bytes], data: st.DataObject) -> None:
    frames = [make_frame(record) for record in records]
    cut = data.draw(st.integers(0, sum(map(len, frames))))
    whole, end = read_frames(b"".join(frames)[:cut])
    assert whole == records[: len(whole)]
    assert end == sum(map(len, frames[: len(whole)]))
    assert len(whole) == len(records) or end + len(frames[len(whole)]) > cut


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6), st.data())
@settings(deadline=None, max_examples=50)
def test_reading_stops_before_a_record_with_a_flipped_bit(records: list[bytes], data: st.DataObject) -> None:
    stream = bytearray(b"".join(map(make_frame, records)))
    bit = data.draw(st.integers(0, len(stream) * 8 - 1))
    stream[bit // 8] ^= 1 << bit % 8
    starts = [len(b"".join(map(make_frame, records[:number]))) for number in range(len(records))]
    hit = max(number for number, start in enumerate(starts) if start <= bit // 8)
    assert read_frames(bytes(stream)) == (records[:hit], starts[hit])


@pytest.mark.parametrize(
    "tail",
    [b"\0" * 100, b"\x05\0\0\0\0\0\0\0abc", b"\xdd4\xc0\xb9\xf0\xd5i\xc9Rq\xa6}\x96", b"\xff\xff\xff\xff"],
    ids=["zeros", "half a frame", "noise", "ones"],
)
def test_an_invalid_end_is_ignored(tmp_path: Path, tail: bytes) -> None:
    path = written(tmp_path / "parts")
    with path.open("ab") as file:
        file.write(tail)
    assert replayed(path) == RECORDS


def test_appended_records_survive_sigkill(root: Path) -> None:
    def work() -> None:
        with Journal.create(root / "parts", HEADER) as journal:
            for record in RECORDS:
                journal.append(record)
            kill_self()

    assert run_in_child(work) == -9
    assert replayed(root / "parts") == RECORDS


def test_a_writer_killed_at_any_time_leaves_a_prefix_of_its_records(memory: Path) -> None:
    def work(send_line: SendLine) -> None:
        with Journal.create(memory / "parts", HEADER) as journal:
            for number in range(1_000_000):
                journal.append(b"%d" % number)
                if number == 100:
                    send_line("going")

    with ChildProcess(work) as child:
        assert child.read_line() == "going"
        assert child.kill() == -9
    found = replayed(memory / "parts")
    assert len(found) > 100
    assert found == [b"%d" % number for number in range(len(found))]


def test_replacing_a_journal_never_loses_the_records_that_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path / "parts")

    def halfway() -> Iterator[bytes]:
        yield RECORDS[0]
        kill_self()

    assert run_in_child(lambda: Journal.create(path, HEADER, halfway())) == -9
    assert replayed(path) == RECORDS
    Journal.create(path, HEADER, RECORDS[:2]).close()
    assert replayed(path) == RECORDS[:2]
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_medium_is_reported_and_leaves_a_readable_journal(tmp_path: Path) -> None:
    path = tmp_path / "parts"

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Journal.create(path, HEADER) as journal:
            journal.append(b"first")
            size = path.stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
            with pytest.raises((InsufficientSpace, CacheNotWritable), match="parts can't be written"):
                journal.append(b"x" * 100)
            assert path.stat().st_size == size
            journal.append(b"small")

    assert run_in_child(work) == 0
    assert replayed(path) == [b"first", b"small"]


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "parts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheNotWritable):
        read_journal(tmp_path / "parts")
    Journal.create(tmp_path / "parts", HEADER).close()
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheNotWritable, match="No such file"):
        Journal.create(tmp_path / "no" / "parts", HEADER)


def test_a_closed_journal_refuses_records(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "parts", HEADER)
    journal.close()
    journal.close()
    with pytest.raises(InternalError, match="closed"):
        journal.append(b"x")
