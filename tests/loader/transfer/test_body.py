"""Bodies are received in C or in Python, with the same results. libcurl passes them on, here from files.

The files in which they are written have their final size from the beginning, as in a load, and are in a tmpfs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pycurl
import pytest
from awscrt import checksums as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from support.receivers import COMPILED, PYTHON
from tonnage.planning.segments import NOT_WRITTEN, SpanRole
from tonnage.source.request_failure import BODY_LIMIT
from tonnage.transfer.compiled_body import CompiledBody, ReceiveLibrary
from tonnage.transfer.protocol import Fetch
from tonnage.transfer.python_body import PythonBody

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tonnage.transfer.body import Body

FILES = 2
SIZE = 150_000
FILE_SIZE = 2 * SIZE
HELD, ADVISED = "compiled, others write the files", "compiled, huge pages by advice"
CRCS = {"": lambda _data: 0, "crc64nvme": reference.crc64nvme, "crc32c": reference.crc32c}
WHOLE = Fetch(1, 0, 0, SIZE, [(SIZE, int(SpanRole.DATA), 0, 0)])

SLOTS = 4
"""How many processes add pages to one file at a time; one that has the first byte locked writes, the others map it."""

MakeBody = Callable[[pycurl.Curl, Callable[[int], int]], "Body"]


@dataclass(repr=False)
class Store:
    """An object, and output files, which have only zeros at first; ``other_descriptors`` are other ones of them."""

    content: bytes
    source: Path
    outputs: list[int]
    other_descriptors: list[int]

    def outputs_of(self, number: int) -> int:
        return self.outputs[number]

    def receive(
        self,
        body: Body,
        curl: pycurl.Curl,
        fetch: Fetch,
        *,
        crc: str = "",
        to: int = 0,
        buffer: int = 16 << 10,
        accepted: bool | None = True,
    ) -> int:
        """Lets libcurl read the bytes of a range, up to ``to``, and pass them on. Returns its error code."""
        for descriptor in self.outputs:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
                os.ftruncate(descriptor, FILE_SIZE)
        curl.reset()
        curl.setopt(pycurl.URL, self.source.as_uri())
        curl.setopt(pycurl.RANGE, f"{fetch.start}-{(to or fetch.end) - 1}")
        curl.setopt(pycurl.BUFFERSIZE, buffer)
        body.start(curl, fetch, crc)
        if accepted is not None:
            body.decide(accepted=accepted)
        try:
            curl.perform()
        except pycurl.error as error:
            return int(error.args[0])
        finally:
            body.finish()
        return 0


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    folder = Path(tempfile.mkdtemp(prefix="tonnage-test-", dir="/dev/shm"))
    content = os.urandom(SIZE)
    (folder / "object").write_bytes(content)
    descriptors = [os.open(folder / f"output-{n % FILES}", os.O_RDWR | os.O_CREAT) for n in range(2 * FILES)]
    yield Store(content, folder / "object", descriptors[:FILES], descriptors[FILES:])
    for descriptor in descriptors:
        os.close(descriptor)
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=[COMPILED, HELD, ADVISED, PYTHON])
def make_body(request: pytest.FixtureRequest, receive_library: str, store: Store) -> Iterator[MakeBody]:
    if request.param == PYTHON:
        yield lambda _curl, files: PythonBody(files)
        return
    if request.param == HELD:
        for descriptor in store.other_descriptors:
            lock(descriptor, 0, 1)
    library = ReceiveLibrary(receive_library)
    yield lambda curl, files: CompiledBody(library, curl, files, in_tmpfs=True, huge_pages=request.param == ADVISED)
    for descriptor in store.other_descriptors:
        unlock(descriptor)


@st.composite
def fetches(draw: st.DrawFn) -> Fetch:
    """Ranges of the object, of pieces of all kinds."""
    bounds = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=12)))
    pieces = []
    for start, end in pairwise(bounds):
        role = draw(st.sampled_from(SpanRole))
        target = draw(st.sampled_from([NOT_WRITTEN, start, start + 1000]))
        pieces.append((end, int(role), target, draw(st.integers(0, FILES - 1))))
    return Fetch(1, 0, bounds[0], bounds[-1], pieces)


@settings(deadline=None, max_examples=100)
@given(fetch=fetches(), buffer=st.integers(1024, 70_000), to=st.integers(1, SIZE), crc=st.sampled_from(sorted(CRCS)))
def test_bytes_are_written_where_they_belong_and_are_in_their_checksums(
    make_body: MakeBody, store: Store, fetch: Fetch, buffer: int, to: int, crc: str
) -> None:
    to = max(fetch.start + 1, min(fetch.end, to))
    curl = pycurl.Curl()
    body = make_body(curl, store.outputs_of)
    assert store.receive(body, curl, fetch, crc=crc, to=to, buffer=buffer) == 0

    checksums, captured, files = [], [], [bytearray(FILE_SIZE) for _ in range(FILES)]
    start = fetch.start
    for end, role, target, number in fetch.pieces:
        if start >= to:
            break
        data = store.content[start : min(end, to)]
        is_captured = role in {SpanRole.HEADER, SpanRole.TAIL}
        checksums.append(0 if is_captured else zlib.crc32(data))
        captured.append(data if is_captured else b"")
        if target != NOT_WRITTEN:
            files[number][target : target + len(data)] = data
        start = end
    assert body.results() == (checksums, captured)
    assert (body.at, body.crc) == (to, CRCS[crc](store.content[fetch.start : to]))
    assert (body.unreported_bytes, body.write_error, body.too_long) == (to - fetch.start, 0, False)
    assert [os.pread(descriptor, 2 * FILE_SIZE, 0) for descriptor in store.outputs] == files


def test_a_body_is_used_again(make_body: MakeBody, store: Store) -> None:
    curl = pycurl.Curl()
    body = make_body(curl, store.outputs_of)
    assert store.receive(body, curl, WHOLE, to=1000) == 0
    assert store.receive(body, curl, WHOLE) == 0
    assert body.results() == ([zlib.crc32(store.content)], [b""])
    assert body.unreported_bytes == 1000 + SIZE
    body.unreported_bytes = 0
    assert body.unreported_bytes == 0


def test_the_beginning_of_what_is_not_the_range_is_kept_and_nothing_is_written(
    make_body: MakeBody, store: Store
) -> None:
    curl = pycurl.Curl()
    body = make_body(curl, store.outputs_of)
    assert store.receive(body, curl, WHOLE, accepted=None) == 0
    assert body.other_body[:BODY_LIMIT] == store.content[:BODY_LIMIT]
    assert (body.at, body.results()) == (0, ([], []))
    assert os.pread(store.outputs[0], SIZE, 0) == bytes(SIZE)


def test_a_refused_response_ends_the_transfer(make_body: MakeBody, store: Store) -> None:
    curl = pycurl.Curl()
    body = make_body(curl, store.outputs_of)
    assert store.receive(body, curl, WHOLE, accepted=False) == pycurl.E_WRITE_ERROR
    assert (body.at, body.too_long, body.write_error) == (0, False, 0)


def test_more_bytes_than_the_range_end_the_transfer(make_body: MakeBody, store: Store) -> None:
    fetch = Fetch(1, 0, 10, 100_000, [(100_000, int(SpanRole.DATA), 0, 0)])
    curl = pycurl.Curl()
    body = make_body(curl, store.outputs_of)
    assert store.receive(body, curl, fetch, to=SIZE) == pycurl.E_WRITE_ERROR
    assert body.too_long
    assert os.pread(store.outputs[0], body.at - 10, 0) == store.content[10 : body.at]


def test_a_failed_write_ends_the_transfer_with_its_error(make_body: MakeBody, store: Store) -> None:
    curl = pycurl.Curl()
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        body = make_body(curl, lambda _number: full)
        fetch = Fetch(1, 0, 0, SIZE, [(SIZE, int(SpanRole.DATA), 0, 0)])
        code = store.receive(body, curl, fetch)
    finally:
        os.close(full)
    assert body.write_error
    assert code in {0, pycurl.E_WRITE_ERROR}, "what was buffered may have been written after the last byte had come"


def lock(descriptor: int, first: int, size: int, *, command: int = fcntl.F_OFD_SETLK) -> None:
    """Locks bytes of a file, as another process that adds pages to it does."""
    fcntl.fcntl(descriptor, command, struct.pack("hh4xqqi4x", fcntl.F_WRLCK, os.SEEK_SET, first, size, 0))


def unlock(descriptor: int) -> None:
    lock_of_all = struct.pack("hh4xqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, lock_of_all)


def has_waiting_locks(descriptor: int) -> bool:
    """Whether another program waits for a lock of a file."""
    inode = f":{os.fstat(descriptor).st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def written_bytes() -> int:
    """Returns how many bytes this process has passed to ``write`` and the like."""
    found = re.search(r"^wchar: (\d+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


@pytest.mark.parametrize("held", [False, True])
def test_a_file_of_a_tmpfs_is_written_by_one_and_mapped_by_the_others(
    receive_library: str, store: Store, *, held: bool
) -> None:
    """Because writers of one file wait for each other."""
    curl = pycurl.Curl()
    body = CompiledBody(ReceiveLibrary(receive_library), curl, store.outputs_of, in_tmpfs=True)
    other = store.other_descriptors[0]
    if held:
        lock(other, 0, 1)
    try:
        before = written_bytes()
        assert store.receive(body, curl, WHOLE) == 0
        assert (written_bytes() - before >= SIZE) != held
        lock(other, 0, SLOTS)  # the body has released what it had
    finally:
        unlock(other)
    assert os.pread(store.outputs[0], SIZE, 0) == store.content


def test_no_more_than_four_add_pages_to_a_file_of_a_tmpfs_at_a_time(receive_library: str, store: Store) -> None:
    """Because more of them fill it no faster, but spin in the kernel."""
    other = store.other_descriptors[0]
    curl = pycurl.Curl()
    body = CompiledBody(ReceiveLibrary(receive_library), curl, store.outputs_of, in_tmpfs=True)
    lock(other, 0, SLOTS)
    try:
        with ThreadPoolExecutor(1) as pool:
            received = pool.submit(store.receive, body, curl, WHOLE)
            while not has_waiting_locks(other):
                assert not received.done()
                time.sleep(0.001)
            unlock(other)
            assert received.result() == 0
    finally:
        unlock(other)
    assert os.pread(store.outputs[0], SIZE, 0) == store.content


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs takes root")
@pytest.mark.parametrize("held", [False, True])
def test_a_full_tmpfs_is_the_error_of_a_write(
    receive_library: str, store: Store, tmp_path: Path, *, held: bool
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", tmp_path], check=True)
    try:
        with (tmp_path / "file").open("w+b") as file, (tmp_path / "file").open("r+b") as other:
            file.truncate(FILE_SIZE)
            if held:
                lock(other.fileno(), 0, 1)
            curl = pycurl.Curl()
            body = CompiledBody(ReceiveLibrary(receive_library), curl, lambda _number: file.fileno(), in_tmpfs=True)
            store.receive(body, curl, WHOLE)
            assert body.write_error == errno.ENOSPC
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
