"""Which ``.tensors`` files a model becomes, with their names and tensors. Pure."""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import FormatUnsupported, NameCollision
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INDEX_BYTES = 256 * 1024
"""Size of the index in each file that tensorizer writes."""
NAME_BYTES = 65535
RANK_FILE = re.compile(r"model-rank-(\d+)-part-\d+\.safetensors")
"""Names of the files of vLLM's ``sharded_state``."""
_PART = re.compile(r"-\d{5}-of-\d{5}")
_RESERVED_START = "\x1e"
"""The character with which tensorizer marks nested names."""


class TensorSpec(NamedTuple):
    """A tensor to write. ``dtype`` is the text in the file's index; ``length`` is in bytes."""

    name: str
    dtype: str
    dimensions: int
    length: int

    @property
    def index_bytes(self) -> int:
        """Bytes of the tensor's entry in the index; 4 more for its tag, if a dimension needs 64 bits."""
        return 2 + len(self.name.encode()) + 1 + 1 + len(self.dtype.encode()) + 1 + 8 * self.dimensions + 24 + 4


class OutputFile(NamedTuple):
    """A file to write: its path below the target, and the names of its tensors, in order."""

    path: str
    tensors: tuple[str, ...]


def group_path(path: str) -> str:
    """Returns the path of the ``.tensors`` file to which a file of weights belongs.

    Shards of one index belong to one file, as do the parts of a rank: ``model-rank-3-part-0.safetensors`` becomes
    ``model-rank-003.tensors``. Subfolders and stems are kept, because readers depend on them.
    """
    folder, name = posixpath.split(path)
    rank = RANK_FILE.fullmatch(name)
    stem = f"model-rank-{int(rank[1]):03d}" if rank else _PART.sub("", name.rpartition(".")[0])
    return posixpath.join(folder, f"{stem}.tensors")


def divide(path: str, tensors: Sequence[TensorSpec], *, file_size: int = 0) -> tuple[OutputFile, ...]:
    """Divides the tensors of a group into files, in order.

    Args:
        path: The group's path.
        tensors: Its tensors.
        file_size: Maximum bytes of tensor data in a file, unless one tensor is larger; 0: no maximum.

    Raises:
        NameCollision: tensorizer could not read a name back.
        FormatUnsupported: There are no tensors, or a rank does not fit into one file, which its reader expects.
    """
    if not tensors:
        raise FormatUnsupported(f"{path} would have no tensors, and tensorizer reads no file without one.")
    for tensor in tensors:
        _check_name(tensor.name)
    files: list[list[str]] = []
    index, size = INDEX_BYTES, 0
    for tensor in tensors:
        index += tensor.index_bytes
        size += tensor.length
        if index > INDEX_BYTES or (file_size and size > file_size):
            files.append([])
            index, size = tensor.index_bytes, tensor.length
        files[-1].append(tensor.name)
    if len(files) > 1 and posixpath.basename(path).startswith("model-rank-"):
        raise FormatUnsupported(
            f"{path} would need {len(files)} files: a rank is one file, with an index of {INDEX_BYTES:,} bytes.",
            remedy="Raise or omit --file-size; a rank with more tensors can't be serialized.",
        )
    stem = path.removesuffix(".tensors")
    return tuple(
        OutputFile(path if len(files) == 1 else f"{stem}-{at:05d}-of-{len(files):05d}.tensors", tuple(names))
        for at, names in enumerate(files, start=1)
    )


def check_distinct(paths: Iterable[str]) -> None:
    """Checks that no path occurs twice.

    Raises:
        NameCollision: One does.
    """
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise NameCollision(
                f"Two files would become {path}.",
                remedy="Leave one of them out with --exclude, or serialize them to different targets.",
            )
        seen.add(path)


def _check_name(name: str) -> None:
    size = len(name.encode("utf-8", "surrogatepass"))
    if not name or name.startswith(_RESERVED_START) or size > NAME_BYTES:
        raise NameCollision(
            f"tensorizer can't read back a tensor of the name {short_repr(name)}.",
            remedy="Rename the tensor in the source.",
        )
