"""Name, dtype, shape and location of a tensor in a file. Does not import torch."""

from __future__ import annotations

from typing import NamedTuple

NO_FILE = -1
"""The file of a meta tensor, which has a shape and a dtype but no bytes."""


class TensorInfo(NamedTuple):
    """One tensor.

    Attributes:
        name: Flat name, unique in the catalog.
        path: Keys of nested dicts (strings) and indices of lists (integers); a 1-tuple if the name is not nested.
        dtype: Name of the PyTorch dtype, for example ``bfloat16``.
        item_size: Bytes of an element.
        shape: Shape as in PyTorch.
        file: Index in ``Catalog.files``; ``NO_FILE`` for a meta tensor.
        offset: Offset of the first byte in the file.
        length: Bytes; 0 for empty and meta tensors.
    """

    name: str
    path: tuple[str | int, ...]
    dtype: str
    item_size: int
    shape: tuple[int, ...]
    file: int
    offset: int
    length: int

    @property
    def is_meta(self) -> bool:
        """Whether the file has a shape and a dtype for the tensor, but no data."""
        return self.file == NO_FILE
