"""What is known of a tensor before it is one: its name, form and place. Pure data, without torch."""

from __future__ import annotations

from typing import NamedTuple

NO_FILE = -1
"""The file of a meta tensor, which has a shape and a dtype but no bytes."""


class TensorInfo(NamedTuple):
    """One tensor.

    Attributes:
        name: Its flat name, unique in the catalog.
        path: Its place in nested dicts (strings) and lists (integers); a 1-tuple where names are flat.
        dtype: Name of the dtype in torch, for example ``bfloat16``.
        item_size: Bytes of an element.
        shape: Dimensions as torch shows them.
        file: Index in ``Catalog.files``; ``NO_FILE`` for a meta tensor.
        offset: Offset of its first byte in the file.
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
        """Whether the file says what the tensor looks like, but holds no data for it."""
        return self.file == NO_FILE
