"""Cache entries with real tensors in them, small enough to be written by the hundred."""

from __future__ import annotations

import hashlib
import random
import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple

from tonnage.cache import Cache, FileRecord, Journal, JournalHeader, Manifest, SourceRecord, TensorRecord, TensorTable
from tonnage.cache.verify import verify_entry
from tonnage.contract import Layout, Verify

if TYPE_CHECKING:
    from pathlib import Path

    from tonnage.cache import Entry
    from tonnage.cache.commit import StepCallback

NAME = "r-0123456789ab"
SHARD_HEAD = b"\x08\0\0\0\0\0\0\0{}      "
RECORDS = [b'{"segment":0}', b'{"segment":1}']


class Sample(NamedTuple):
    """What an entry is to hold: contents by path, and the manifest and table that say so."""

    contents: dict[str, bytes]
    manifest: Manifest
    table: TensorTable


def sample(*, ranks: int = 2, tensor_bytes: int = 1000, sha256: bool = True) -> Sample:
    """Makes one shard of two tensors a rank, an index and a companion in a folder."""
    noise = random.Random(7)
    companions = {path: noise.randbytes(300) for path in ("model.safetensors.index.json", "tokenizer/vocab.txt")}
    contents: dict[str, bytes] = {}
    files, tensors, sources = [], [], []
    for rank in range(ranks):
        path = f"model-rank-{rank}-part-0.safetensors"
        data = SHARD_HEAD
        for number in range(2):
            body, header = noise.randbytes(tensor_bytes), noise.randbytes(50)
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
    others: dict[str, Literal["index", "companion"]] = {
        "model.safetensors.index.json": "index",
        "tokenizer/vocab.txt": "companion",
    }
    for path, kind in others.items():
        contents[path] = companions[path]
        files.append(FileRecord(path=path, size=300, kind=kind))
    manifest = Manifest(
        revision=NAME, digest="sha256:00", layout=Layout.SAFETENSORS, verified=Verify.CRC32, created=1.0,
        tonnage_version="0.1", bytes=sum(map(len, contents.values())), sources=tuple(sources), files=tuple(files),
    )  # fmt: skip
    return Sample(contents, manifest, TensorTable(tensors=tuple(tensors)))


def header(manifest: Manifest) -> JournalHeader:
    files = tuple((file.path, file.size) for file in manifest.files)
    return JournalHeader(
        revision=manifest.revision, layout=manifest.layout, segment_size=1, part_size=1, files=files, boot_id="boot"
    )


def fill(entry: Entry, made: Sample, *, only: set[str] | None = None) -> None:
    """Writes what a load has written just before it publishes: files, and a journal."""
    model = entry.begin_partial()
    for path, data in made.contents.items():
        if only is None or path in only:
            (model / path).parent.mkdir(exist_ok=True)
            (model / path).write_bytes(data)
    with Journal.create(entry.journal_path, header(made.manifest)) as journal:
        for record in RECORDS:
            journal.append(record)


def publish(entry: Entry, made: Sample, *, checkpoint: StepCallback | None = None) -> None:
    entry.publish(made.manifest, made.table, on_step=checkpoint)


def published_entry(root: Path, made: Sample | None = None) -> Entry:
    """Returns an entry that a load has published."""
    made = made or sample()
    entry = Cache(root).entry(NAME)
    entry.path.parent.mkdir(exist_ok=True)
    entry.create()
    with entry.acquire_load_lock():
        fill(entry, made)
        publish(entry, made)
    return entry


def visible(entry: Entry) -> dict[str, bytes]:
    """Returns what a serving container sees."""
    return {
        str(path.relative_to(entry.model_dir)): path.read_bytes()
        for path in entry.model_dir.rglob("*")
        if path.is_file()
    }


def assert_nothing_or_all(entry: Entry, *allowed: dict[str, bytes]) -> None:
    """Fails unless ``model/`` is empty or exactly one of the allowed contents."""
    assert visible(entry) in ({}, *allowed)


def assert_whole(entry: Entry, made: Sample) -> None:
    """Fails unless all of the sample is published, verified, read-only, and nothing else is left."""
    assert entry.state == "ready"
    assert visible(entry) == made.contents
    assert verify_entry(entry, level=Verify.CRC32, threads=1).verified is Verify.CRC32
    assert {path.stat().st_mode & 0o777 for path in entry.model_dir.rglob("*") if path.is_file()} == {0o444}
    manifest = entry.read_manifest()
    assert manifest is not None
    assert manifest.table is not None
    left = ["load.lock", "manifest.json", manifest.table.name, "use.lock"]
    assert sorted(path.name for path in entry.private_dir.iterdir()) == left
