"""Writes one ``.tensors`` file with tensorizer, one tensor in memory at a time, and reads it back."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensorizer import DecryptionParams, EncryptionParams, TensorDeserializer, TensorSerializer, TensorType
from tensorizer.serialization import CryptographyError, HashMismatchError

from tonnage.errors import ChecksumMismatch, FormatUnsupported, Interrupted
from tonnage.format.tensor_names import short_repr
from tonnage.serialize.source_files import check_writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tonnage.serialize.layout import OutputFile
    from tonnage.serialize.source_files import Group

BATCH_BYTES = 64 << 20
"""Bytes that are read back at a time, unless one tensor is larger."""
KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class FileWriter:
    """Writes one file, and reads it back.

    Attributes:
        location: Where to write it.
        file: The names of its tensors.
        group: Has the tensors.
        key: The key to encrypt with; None: don't encrypt.
        canceled: Polled between tensors.
    """

    location: Path
    file: OutputFile
    group: Group
    key: bytes | None
    canceled: Callable[[], bool]

    def write(self, on_bytes: Callable[[int], None]) -> None:
        """Writes the file. Each tensor has its CRC-32 and SHA-256; an encrypted one has the SHA-256 of its plain data.

        Args:
            on_bytes: Called with the bytes of each tensor that is written.

        Raises:
            DtypeUnsupported: tensorizer can't represent a tensor.
            FormatUnsupported: The index does not fit.
            Interrupted: ``canceled`` returned True.
            OSError: The file can't be written.
        """
        encryption = None if self.key is None else EncryptionParams(self.key)
        serializer = TensorSerializer(str(self.location), encryption=encryption)
        with contextlib.closing(serializer):
            for name in self.file.tensors:
                _check_canceled(self.canceled)
                tensor = self.group.tensor(name)
                check_writable(name, tensor, encrypted=self.key is not None)
                try:
                    serializer.write_tensor(0, name, TensorType.STATE_DICT, tensor)
                except RuntimeError as error:
                    if str(error) != "Metadata overflow":
                        raise
                    raise FormatUnsupported(f"The index of {self.file.path} is too small for its tensors.") from error
                on_bytes(tensor.nbytes)

    def check(self, on_bytes: Callable[[int], None]) -> None:
        """Reads the file with tensorizer, its hashes verified, and compares every tensor with the source.

        Args:
            on_bytes: Called with the bytes of each tensor that is the same, byte for byte.

        Raises:
            ChecksumMismatch: A tensor differs.
            Interrupted: ``canceled`` returned True.
        """
        location = self.location
        try:
            for names in _batches(self.file, self.group):
                for name, tensor in _read_back(location, names, self.key):
                    _check_canceled(self.canceled)
                    if not is_same(tensor, self.group.tensor(name)):
                        problem = _damaged(location, f"the tensor {short_repr(name)} differs")
                        raise ChecksumMismatch(problem, remedy=_REMEDY)
                    on_bytes(tensor.nbytes)
        except (HashMismatchError, CryptographyError) as error:
            raise ChecksumMismatch(_damaged(location, str(error)), remedy=_REMEDY) from error


def _batches(file: OutputFile, group: Group) -> Iterator[list[str]]:
    """Yields the names of a file's tensors in batches: tensorizer keeps what it has read until it is closed."""
    lengths = {spec.name: spec.length for spec in group.specs}
    batch: list[str] = []
    size = 0
    for name in file.tensors:
        if batch and size + lengths[name] > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(name)
        size += lengths[name]
    yield batch


def _read_back(location: Path, names: list[str], key: bytes | None) -> Iterator[tuple[str, torch.Tensor]]:
    encryption = None if key is None else DecryptionParams.from_key(key)
    written = TensorDeserializer(
        str(location), device="cpu", lazy_load=True, verify_hash=True, encryption=encryption, num_readers=1
    )
    with contextlib.closing(written):
        count = 0
        wanted = frozenset(names)
        for _, _, name, tensor in written.read_tensors(filter_func=wanted.__contains__):
            count += 1
            yield name, tensor
        if count != len(names):
            raise ChecksumMismatch(_damaged(location, "tensors are missing"), remedy=_REMEDY)


_REMEDY = "Check the memory and the disk of this machine, then start again."


def _damaged(location: Path, problem: str) -> str:
    return f"{location} was written, and read back with a difference: {problem}."


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether two tensors have the same dtype, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if other.is_meta or not other.numel():
        return True
    one_bytes, other_bytes = (each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(one_bytes, other_bytes)


def _check_canceled(canceled: Callable[[], bool]) -> None:
    if canceled():
        raise Interrupted(
            "The serialization was interrupted.", remedy="Start again; after an upload had begun, with --overwrite."
        )
