"""Sample cache entries, small enough to write hundreds of them."""

from __future__ import annotations

import hashlib
import random
import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple

from tonnage.cache import (
    Cache,
    FileRecord,
    Journal,
    JournalHeader,
    Manifest,
    SourceRecord,
    TensorRecord,
    TensorTable,
    commit,
)
from tonnage.cache.filesystem import remove_tree
from tonnage.cache.partial import create_partial, find_partials
from tonnage.cache.verify import verify_entry
from tonnage.contract import Layout, Verify

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.cache import Entry
    from tonnage.cache.commit import StepCallback
    from tonnage.cache.partial import PartialDirectory

ENTRY_NAME = "r-0123456789ab"
SHARD_HEADER = b"\x08\0\0\0\0\0\0\0{}      "
RECORDS = [b'{"segment":0}', b'{"segment":1}']


class SampleEntry(NamedTuple):
    """Contents of an entry by path, and the matching manifest and tensor table."""

    files: dict[str, bytes]
    manifest: Manifest
    table: TensorTable


def make_sample(*, ranks: int = 2, tensor_bytes: int = 1000, sha256: bool = True) -> SampleEntry:
    """Returns one shard with two tensors for each rank, an index, and a companion in a subfolder."""
    rng = random.Random(7)
    companions = {path: rng.randbytes(300) for path in ("model.safetensors.index.json", "tokenizer/vocab.txt")}
    contents: dict[str, bytes] = {}
    files, tensors, sources = [], [], []
    for rank in range(ranks):
        path = f"model-rank-{rank}-part-0.safetensors"
        data = SHARD_HEADER
        for number in range(2):
            body, header = rng.randbytes(tensor_bytes), rng.randbytes(50)
            tensors.append(
                TensorRecord(
                    f"layer.{rank}.{number}", None, rank, 0, "torch.uint8", (tensor_bytes,), rank, len(data),
                    tensor_bytes, 100, header, zlib.crc32(header + body),
                    hashlib.sha256(header + body).hexdigest() if sha256 else None,
                )
            )  # fmt: skip
            data += body
        contents[path] = data
        files.append(FileRecord(path=path, size=len(data), kind="shard", source=rank, rank=rank))
        sources.append(SourceRecord(place="bucket", key=f"m/{rank}.tensors", size=5000, kind="tensors", rank=rank))
    other_kinds: dict[str, Literal["index", "companion"]] = {
        "model.safetensors.index.json": "index",
        "tokenizer/vocab.txt": "companion",
    }
    for path, kind in other_kinds.items():
        contents[path] = companions[path]
        files.append(FileRecord(path=path, size=300, kind=kind))
    manifest = Manifest(
        revision=ENTRY_NAME, digest="sha256:00", layout=Layout.SAFETENSORS, verified=Verify.CRC32, created=1.0,
        tonnage_version="0.1", bytes=sum(map(len, contents.values())), sources=tuple(sources), files=tuple(files),
    )  # fmt: skip
    return SampleEntry(contents, manifest, TensorTable(tensors=tuple(tensors)))


def journal_header(manifest: Manifest) -> JournalHeader:
    files = tuple((file.path, file.size) for file in manifest.files)
    return JournalHeader(revision=manifest.revision, layout=manifest.layout, segment_size=1, files=files)


def write_partial(entry: Entry, sample: SampleEntry, *, only: set[str] | None = None) -> None:
    """Writes what a load has written before it publishes: files (``only`` some of them) and a journal."""
    remove_tree(entry.partial_dir)
    partial = create_partial(entry)
    for path, data in sample.files.items():
        if only is None or path in only:
            (partial.model_dir / path).parent.mkdir(exist_ok=True)
            (partial.model_dir / path).write_bytes(data)
    with Journal.create(partial.journal_path, journal_header(sample.manifest)) as journal:
        for record in RECORDS:
            journal.append(record)


def partial_of(entry: Entry) -> PartialDirectory:
    """Returns the only partial directory of an entry."""
    (partial,) = find_partials(entry)
    return partial


def publish(entry: Entry, sample: SampleEntry, *, checkpoint: StepCallback | None = None) -> None:
    commit.publish(
        entry, partial_of(entry), sample.manifest, sample.table, current=entry.read_manifest(), on_step=checkpoint
    )


def published_entry(root: Path, sample_entry: SampleEntry | None = None) -> Entry:
    sample_entry = sample_entry or make_sample()
    entry = Cache(root).entry(ENTRY_NAME)
    entry.path.parent.mkdir(exist_ok=True)
    entry.create()
    with entry.acquire_load_lock():
        write_partial(entry, sample_entry)
        publish(entry, sample_entry)
    return entry


def visible_files(entry: Entry) -> dict[str, bytes]:
    """Returns contents by path, as a serving container sees them."""
    return {
        str(path.relative_to(entry.model_dir)): path.read_bytes()
        for path in entry.model_dir.rglob("*")
        if path.is_file()
    }


def assert_empty_or_complete(entry: Entry, *allowed: dict[str, bytes]) -> None:
    """Fails unless ``model/`` is empty or exactly one of the allowed contents."""
    assert visible_files(entry) in ({}, *allowed)


def assert_complete(entry: Entry, sample: SampleEntry) -> None:
    """Fails unless the sample is published, verified and read-only, and nothing else is left."""
    assert entry.state == "ready"
    assert visible_files(entry) == sample.files
    assert verify_entry(entry, level=Verify.CRC32, threads=1).verified is Verify.CRC32
    assert {path.stat().st_mode & 0o777 for path in entry.model_dir.rglob("*") if path.is_file()} == {0o444}
    manifest = entry.read_manifest()
    assert manifest is not None
    assert manifest.table is not None
    remaining = {"load.lock", "manifest.json", manifest.table.name, "use.lock"}
    assert {path.name for path in entry.private_dir.iterdir()} - {"partial"} == remaining
    assert find_partials(entry) == []
