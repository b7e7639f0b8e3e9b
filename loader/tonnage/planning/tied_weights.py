"""Finds output heads that share their data with an embedding. Pure.

tensorizer stores a tied weight once for each of its names. vLLM's ``sharded_state`` expects it under the first name
only, in alphabetical order; of checkpoints some engines refuse a head that their model doesn't have. Whether two
tensors have the same data is known before the transfer: a tensor's CRC-32 is over header and data, and the header's
part can be taken out.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from tonnage.contract.plan import DECODE_ERRORS
from tonnage.format.tensor_header import parse_tensor_header
from tonnage.format.tensors_index import TensorsIndex

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tonnage.format.tensor_header import TensorHeader
    from tonnage.format.tensors_index import TensorEntry
    from tonnage.planning.blueprint import SourceObject

_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|output|output_layer|embed_out)\.weight")
_EMBEDDING = re.compile(r".*(?:embed|wte|embedding)\w*\.weight")


CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20


class _TextConfig(msgspec.Struct):
    tie_word_embeddings: bool | None = None


class _Config(msgspec.Struct):
    model_type: str = ""
    tie_word_embeddings: bool | None = None
    text_config: _TextConfig | None = None


class HeaderRange(NamedTuple):
    """Bytes of an object, such as those of a tensor's header: ``start`` inclusive, ``end`` exclusive."""

    object_index: int
    start: int
    end: int


def find_tied(
    objects: Sequence[SourceObject], read: Callable[[Sequence[HeaderRange]], Sequence[bytes]]
) -> list[SourceObject]:
    """Returns the objects; those whose engines hold a tensor as one with another, with the indexes of such tensors.

    Of files that vLLM serialized, it is the second name in alphabetical order. Of a checkpoint it is the output head,
    as ``save_pretrained`` leaves it out, if the configuration beside it ties them.

    Args:
        objects: Objects of a model.
        read: Returns bytes of objects. Called only if there are candidates.

    Raises:
        FormatDamaged: A header is not the one of its tensor.
    """
    pairs = [
        (number, source.tensors_index, pair)
        for number, source in enumerate(objects)
        if isinstance(source.tensors_index, TensorsIndex) and not source.tensors_index.encrypted
        for pair in candidates(source.tensors_index.tensors)
    ]
    configurations = _configurations(objects, {number for number, _, _ in pairs})
    contents = dict(zip(configurations, read(list(configurations.values())), strict=True)) if configurations else {}
    pairs = [
        each for each in pairs if objects[each[0]].is_vllm_serialized or ties_embeddings(contents.get(each[0], b""))
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
    for number, index, (head, embedding) in pairs:
        first, second = next(checksums), next(checksums)
        if first is None or first != second:
            continue
        is_later = index.tensors[head].name > index.tensors[embedding].name
        tied.setdefault(number, set()).add(head if is_later or not objects[number].is_vllm_serialized else embedding)
    return [
        msgspec.structs.replace(source, tied=frozenset(tied[number])) if number in tied else source
        for number, source in enumerate(objects)
    ]


def _configurations(objects: Sequence[SourceObject], wanted: Collection[int]) -> dict[int, HeaderRange]:
    """Returns where the configuration of each wanted object is that vLLM didn't serialize, and that has one."""
    places = {
        source.path: HeaderRange(number, 0, source.size)
        for number, source in enumerate(objects)
        if is_configuration(source.path, source.size)
    }
    beside = {number: posixpath.join(posixpath.dirname(objects[number].path), CONFIG) for number in wanted}
    return {
        number: places[path]
        for number, path in beside.items()
        if path in places and objects[number].rank is None and not objects[number].is_vllm_serialized
    }


def is_configuration(path: str, size: int) -> bool:
    """Returns whether a file is the configuration of a model, small enough to be read."""
    return posixpath.basename(path) == CONFIG and 0 < size <= MAX_CONFIG_BYTES


def ties_embeddings(config: bytes) -> bool:
    """Returns whether a model's output head is its embedding, by its configuration.

    transformers 4 leaves out what is the default, which is that they are tied; of other models it has false.
    """
    try:
        found = msgspec.json.decode(config, type=_Config)
    except DECODE_ERRORS:
        return False
    if found.tie_word_embeddings is not None:
        return found.tie_word_embeddings
    inner = found.text_config.tie_word_embeddings if found.text_config is not None else None
    return bool(found.model_type) and inner is not False


def candidates(tensors: Sequence[TensorEntry]) -> list[tuple[int, int]]:
    """Returns the pairs of output head and embedding of equal dtype and shape."""
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
                found.append((head, embedding))
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
