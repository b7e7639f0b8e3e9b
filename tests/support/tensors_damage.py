"""Ways to damage a ``.tensors`` file, and the error that each must cause."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from support.tensors_writer import ALL_HASHES, BuiltFile, RawTensor, build_tensors_file
from tonnage.errors import ChecksumMismatch, FormatDamaged, FormatUnsupported, NotATensorizerFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tonnage.errors import TonnageError

F32, BF16, U8 = b"<f4", b"<V2\0torch.bfloat16", b"|u1"

UINT64_MAX = (1 << 64) - 1
INT64_MIN = 1 << 63


def sample_file(
    *,
    version: int | None = None,
    flags: int | None = None,
    hashes: Sequence[str] = ALL_HASHES,
    index_length: int | None = 300,
) -> BuiltFile:
    """Builds the file to damage: three tensors of 24, 8 and 5 bytes, and a short index."""
    return build_tensors_file(
        [
            RawTensor(b"first", F32, (2, 3), struct.pack("<6f", *range(6))),
            RawTensor(b"second", BF16, (4,), bytes(range(8))),
            RawTensor(b"third", U8, (5,), b"third"),
        ],
        version=version,
        flags=flags,
        hashes=hashes,
        index_length=index_length,
    )


def sample_file_with_features() -> BuiltFile:
    """Builds a version 5 file with a meta tensor, an empty one, and a dimension of more than 32 bits."""
    return build_tensors_file(
        [
            RawTensor(b"meta", F32, (2, 3), b""),
            RawTensor(b"long", U8, ((1 << 32) + 1,), b"", wide=True),
            RawTensor(b"empty", F32, (0, 3), b""),
            RawTensor(b"\x1e" + b'["a",0,"b"]', F32, (1,), struct.pack("<f", 1.0)),
        ],
        index_length=0,
    )


class Damage(NamedTuple):
    """A damage, the expected error and a part of its message. ``build`` returns the file to damage."""

    name: str
    corrupt: Callable[[BuiltFile], None]
    error: type[TonnageError]
    message: str
    build: Callable[[], BuiltFile] = sample_file


def _set_number(field: str, value: int) -> Callable[[BuiltFile], None]:
    return lambda file: file.set_number(field, value)


def _add_to_number(field: str, by: int) -> Callable[[BuiltFile], None]:
    return lambda file: file.set_number(field, file.number(field) + by)


def _set_bytes(field: str, value: bytes) -> Callable[[BuiltFile], None]:
    return lambda file: file.set_bytes(field, value)


def _truncate(count: int) -> Callable[[BuiltFile], None]:
    def cut(file: BuiltFile) -> None:
        del file.data[len(file.data) - count :]

    return cut


def _flip_bit(field: str, bit: int = 0) -> Callable[[BuiltFile], None]:
    def flip(file: BuiltFile) -> None:
        file.data[file.fields[field].start] ^= 1 << bit

    return flip


def _set_in_index_and_header(field: str, value: int) -> Callable[[BuiltFile], None]:
    """Sets a field of the first tensor in index and header, so that only the hash detects it."""

    def change(file: BuiltFile) -> None:
        file.set_number(f"index[0].{field}", value)
        file.set_number(f"header[0].{field}", value)

    return change


def _overlap_tensors(file: BuiltFile) -> None:
    """Gives the second tensor the offsets of the first."""
    for field in ("header_offset", "data_offset"):
        file.set_number(f"index[1].{field}", file.number(f"index[0].{field}"))


def _swap_tensors(file: BuiltFile) -> None:
    """Swaps the offsets of the first two tensors, as if the entries were not in file order."""
    for field in ("header_offset", "data_offset"):
        first, second = file.number(f"index[0].{field}"), file.number(f"index[1].{field}")
        file.set_number(f"index[0].{field}", second)
        file.set_number(f"index[1].{field}", first)


def _build_with_names(*names: bytes) -> Callable[[], BuiltFile]:
    return lambda: build_tensors_file([RawTensor(name, U8, (1,), b"x") for name in names], index_length=0)


def _build_with_dtype(dtype: bytes) -> Callable[[], BuiltFile]:
    return lambda: build_tensors_file([RawTensor(b"w", dtype, (4,), bytes(4))], index_length=0)


def _unchanged(_file: BuiltFile) -> None:
    pass


_PREAMBLE = [
    Damage("other magic", _set_bytes("magic", b"\x80\x02}q\0"), NotATensorizerFile, "begins with"),
    Damage("version 0", _set_number("version", 0), FormatUnsupported, "format version 0"),
    Damage("version 6", _set_number("version", 6), FormatUnsupported, "format version 6"),
    Damage("version 5 of another branch", _set_number("version", 5), FormatUnsupported, "unreleased branch"),
    Damage("a flag below version 4", _set_number("flags", 1), FormatUnsupported, "flags 0x1"),
    Damage("tags in version 4", _unchanged, FormatUnsupported, "flags 0x2", lambda: sample_file(version=4, flags=2)),
    Damage("an unknown flag", _set_number("flags", 6), FormatUnsupported, "0x6", sample_file_with_features),
    Damage("the highest flag", _set_number("flags", 1 << 255), FormatUnsupported, "flags", sample_file_with_features),
    Damage("encryption that isn't there", _set_number("version", 3), FormatDamaged, "the crypt block of"),
    Damage("reserved field set", _set_number("reserved", 1), FormatDamaged, "byte 49"),
    Damage("no tensors", _set_number("count", 0), FormatDamaged, "no tensors"),
    Damage("one tensor too few", _set_number("count", 2), FormatDamaged, "in total"),
    Damage("one tensor too many", _set_number("count", 4), FormatDamaged, "index"),
    Damage("absurdly many tensors", _set_number("count", UINT64_MAX), FormatDamaged, "more than fit into its index"),
    Damage("absurd index length", _set_number("index_length", UINT64_MAX), FormatDamaged, "an index of"),
    Damage("negative index length", _set_number("index_length", INT64_MIN), FormatDamaged, "an index of"),
    Damage("index without room", _set_number("index_length", 98), FormatDamaged, "more than fit into its index"),
    Damage("index one byte short", _add_to_number("index_length", -1), FormatDamaged, "the index states byte"),
    Damage("index cut inside an entry", _set_number("index_length", 110), FormatDamaged, "at byte"),
    Damage("absurd data length", _set_number("data_bytes", UINT64_MAX), FormatDamaged, "bytes of tensor data"),
    Damage("sum of lengths off", _add_to_number("data_bytes", -1), FormatDamaged, "in total"),
]
_INDEX = [
    Damage("header too late", _add_to_number("index[1].header_offset", 1), FormatDamaged, "'second' should be at byte"),
    Damage("header out of the file", _set_number("index[2].header_offset", UINT64_MAX), FormatDamaged, "'third'"),
    Damage("data out of the file", _set_number("index[2].data_offset", INT64_MIN), FormatDamaged, "'third'"),
    Damage("data before its header", _set_number("index[0].data_offset", 0), FormatDamaged, "'first'"),
    Damage("header too small", _add_to_number("index[0].data_offset", -60), FormatDamaged, "so its header at byte"),
    Damage("absurd tensor length", _set_number("index[2].length", UINT64_MAX), FormatDamaged, "bytes"),
    Damage("negative tensor length", _set_number("index[2].length", INT64_MIN), FormatDamaged, "bytes"),
    Damage("length not that of the shape", _add_to_number("index[0].length", 1), FormatDamaged, "shape [2, 3]"),
    Damage("data of length 0", _set_number("index[2].length", 0), FormatDamaged, "in total"),
    Damage("overlapping tensors", _overlap_tensors, FormatDamaged, "'second'"),
    Damage("entries out of order", _swap_tensors, FormatDamaged, "'first'"),
    Damage("unknown kind", _set_number("index[1].kind", 3), FormatDamaged, "unknown kind 3"),
    Damage("name length beyond the index", _set_number("index[2].name_length", 65535), FormatDamaged, "ends inside"),
    Damage("rank beyond the index", _set_number("index[2].rank", 255), FormatDamaged, "ends inside"),
    Damage("unknown tag", _set_number("index[0].tag", 2), FormatDamaged, "tag is 2", sample_file_with_features),
    Damage("wrong tag", _set_number("index[0].tag", 5), FormatDamaged, "", sample_file_with_features),
    Damage(
        "a shape that no machine holds", _set_number("index[1].dims", UINT64_MAX), FormatDamaged, "too large",
        sample_file_with_features
    ),
    Damage("twice the same name", _unchanged, FormatDamaged, "is duplicate", _build_with_names(b"w", b"v", b"w")),
    Damage(
        "twice the same path", _unchanged, FormatDamaged, "is duplicate", _build_with_names(b"w", b'\x1e["w"]')
    ),
    Damage("an empty name", _unchanged, FormatDamaged, "the name is empty", _build_with_names(b"ab", b"")),
    Damage("a name that is not UTF-8", _unchanged, FormatDamaged, "not UTF-8", _build_with_names(b"\xff\xfe")),
    *(
        Damage(f"nested name {text!r}", _unchanged, FormatDamaged, "nested name", _build_with_names(b"\x1e" + text))
        for text in (
            b"", b"[]", b"{}", b'"a"', b"[1.0]", b"[-1]", b"[true]", b"[null]", b'[["a"]]', b"[NaN]", b'["a"', b"[1,]",
            b'["a"],["b"]', b'["a",\n"b"]', b'["\\ud800"]',
            b'["\xff"]', b"[" * 60_000 + b"]", b"[" + b"9" * 5000 + b"]",
        )
    ),
    *(
        Damage(f"dtype {dtype!r}", _unchanged, FormatUnsupported, "dtype", _build_with_dtype(dtype))
        for dtype in (
            b"", b"<f3", b">f4", b"<f4\0", b"|V1", b"<V2\0bfloat16", b"|V2\0torch.bfloat16", b"<V4\0torch.bfloat16",
            b"|O", b"<V2\0torch.\xff", b"<M8[ns]", b"|V1\0torch.bfloat16", b"<V3\0torch.new", b"d" * 255,
        )
    ),
]  # fmt: skip
_HEADER = [
    Damage("header size off", _add_to_number("header[1].size", 1), FormatDamaged, "'second', header at byte"),
    Damage("header size absurd", _set_number("header[1].size", UINT64_MAX), FormatDamaged, "'second'"),
    Damage("terminator instead of a header", _set_number("header[1].size", 0), FormatDamaged, "'second'"),
    Damage("other name", _flip_bit("header[1].name"), FormatDamaged, "it is the header of tensor"),
    Damage("other name length", _set_number("header[1].name_length", 5), FormatDamaged, "it is the header of tensor"),
    Damage(
        "absurd name length", _set_number("header[1].name_length", 65535), FormatDamaged, "it is the header of tensor"
    ),
    Damage("other kind", _set_number("header[1].kind", 1), FormatDamaged, "kind 1"),
    Damage("other dtype", _set_bytes("header[0].dtype", b"<i4"), FormatDamaged, "'<i4'"),
    Damage("other rank", _set_number("header[0].rank", 1), FormatDamaged, "shape differs"),
    Damage("other shape", _set_bytes("header[0].dims", struct.pack("<II", 3, 2)), FormatDamaged, "shape differs"),
    Damage("other length", _add_to_number("header[0].length", 1), FormatDamaged, "states 25 bytes"),
    Damage("compressed", _set_number("header[0].length", -24), FormatUnsupported, "compressed"),
    Damage("unknown hash", _set_number("header[0].crc32.type", 2), FormatUnsupported, "hash type 2"),
    Damage("twice the same hash", _set_number("header[0].sha256.type", 0), FormatDamaged, "wrong size or is duplicate"),
    Damage("hash of the wrong size", _set_number("header[0].crc32.size", 5), FormatDamaged, "wrong size"),
    Damage("one hash too few", _set_number("header[0].hash_count", 1), FormatDamaged, "don't fill"),
    Damage("one hash too many", _set_number("header[0].hash_count", 3), FormatDamaged, ""),
    Damage("hash block too long", _set_number("header[0].hash_block", 65535), FormatDamaged, "ends after the header"),
    Damage("hash block too short", _add_to_number("header[0].hash_block", -1), FormatDamaged, ""),
    Damage("hash block of no bytes", _set_number("header[0].hash_block", 0), FormatDamaged, ""),
    Damage("another tensor behind", _set_number("terminator", 80), FormatDamaged, "8 zero bytes"),
]
_CONTENTS = [
    Damage("flipped data bit", _flip_bit("data[1]", 3), ChecksumMismatch, "second"),
    Damage("zeroed data", _set_bytes("data[0]", bytes(24)), ChecksumMismatch, "first"),
    Damage("flipped CRC-32", _flip_bit("header[2].crc32"), ChecksumMismatch, "CRC-32"),
    Damage("flipped SHA-256", _flip_bit("header[2].sha256"), ChecksumMismatch, "SHA-256"),
    Damage("other module index", _set_number("header[0].module", 7), ChecksumMismatch, "first"),
    Damage("other kind in both places", _set_in_index_and_header("kind", 1), ChecksumMismatch, "first"),
]
_TRUNCATIONS = [
    Damage("terminator cut", _truncate(8), FormatDamaged, "truncated"),
    Damage("one byte cut", _truncate(1), FormatDamaged, "truncated"),
    Damage("last data byte cut", _truncate(9), FormatDamaged, "truncated"),
    Damage("half of the file cut", lambda file: _truncate(len(file.data) // 2)(file), FormatDamaged, ""),
    Damage("all but the magic cut", lambda file: _truncate(len(file.data) - 5)(file), FormatDamaged, "at byte 5"),
    Damage("all cut", lambda file: _truncate(len(file.data))(file), NotATensorizerFile, "is empty"),
]

DAMAGES = [*_PREAMBLE, *_INDEX, *_HEADER, *_CONTENTS, *_TRUNCATIONS]
