"""Finds output heads that share their data with an embedding, in files that vLLM serialized. Pure.

tensorizer stores a tied weight once for each of its names. vLLM's ``sharded_state`` expects it under the first name
only, in alphabetical order. Whether two tensors have the same data is known before the transfer: a tensor's CRC-32 is
over header and data, and the header's part can be taken out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.format.tensor_header import parse_tensor_header
from tonnage.format.tensors_index import TensorsIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.format.tensor_header import TensorHeader
    from tonnage.format.tensors_index import TensorEntry
    from tonnage.planning.blueprint import SourceObject

_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|output|output_layer|embed_out)\.weight")
_EMBEDDING = re.compile(r".*(?:embed|wte|embedding)\w*\.weight")


class HeaderRange(NamedTuple):
    """The bytes of a tensor's header in an object: ``start`` inclusive, ``end`` exclusive."""

    object_index: int
    start: int
    end: int


def find_tied(
    objects: Sequence[SourceObject], read: Callable[[Sequence[HeaderRange]], Sequence[bytes]]
) -> list[SourceObject]:
    """Returns the objects; those that vLLM serialized with the indexes of their tied weights' second names.

    Args:
        objects: Objects of a model.
        read: Returns the bytes of headers. Called once, and only if there are candidates.

    Raises:
        FormatDamaged: A header is not the one of its tensor.
    """
    pairs = [
        (number, source.tensors_index, pair)
        for number, source in enumerate(objects)
        if isinstance(source.tensors_index, TensorsIndex) and source.is_vllm_serialized
        for pair in candidates(source.tensors_index.tensors)
    ]
    if not pairs:
        return list(objects)
    entries = [(number, index, index.tensors[at]) for number, index, pair in pairs for at in pair]
    stored = read([HeaderRange(number, entry.header_offset, entry.data_offset) for number, _, entry in entries])
    checksums = iter(
        data_crc32(parse_tensor_header(data, entry, preamble=index.preamble, label=objects[number].label), entry.length)
        for (number, index, entry), data in zip(entries, stored, strict=True)
    )
    tied: dict[int, set[int]] = {}
    for number, _, pair in pairs:
        first, second = next(checksums), next(checksums)
        if first is not None and first == second:
            tied.setdefault(number, set()).add(pair[1])
    return [
        msgspec.structs.replace(source, tied=frozenset(tied[number])) if number in tied else source
        for number, source in enumerate(objects)
    ]


def candidates(tensors: Sequence[TensorEntry]) -> list[tuple[int, int]]:
    """Returns the pairs of output head and embedding of equal dtype and shape, the alphabetically first name first."""
    heads = [at for at, tensor in enumerate(tensors) if _HEAD.fullmatch(tensor.name)]
    embeddings = [
        at
        for at, tensor in enumerate(tensors)
        if _EMBEDDING.fullmatch(tensor.name) and not _HEAD.fullmatch(tensor.name)
    ]
    found = []
    for head in heads:
        for embedding in embeddings:
            one, other = tensors[head], tensors[embedding]
            if one.length and (one.dtype, one.shape, one.length) == (other.dtype, other.shape, other.length):
                found.append((head, embedding) if one.name < other.name else (embedding, head))
    return found


def data_crc32(header: TensorHeader, length: int) -> int | None:
    """Returns the CRC-32 of a tensor's data alone; None if its header has no CRC-32.

    Args:
        header: The tensor's header.
        length: Bytes of data.
    """
    from isal import isal_zlib

    if header.expected_crc32 is None:
        return None
    prefix: int = isal_zlib.crc32_combine(isal_zlib.crc32(header.hash_prefix), 0, length)
    return header.expected_crc32 ^ prefix
