"""The dtypes that tensorizer writes, and their names in torch and safetensors.

tensorizer stores a dtype as numpy's type string (``<f4``), or, for types unknown to numpy, as an opaque width and
torch's name separated by a NUL byte (``<V2`` NUL ``torch.bfloat16``). Unlisted torch dtypes in this opaque encoding are
accepted as stated; any other dtype is rejected.

The safetensors names were checked by writing and reading each type with safetensors 0.8.0 and torch. Some types that
``.tensors`` files can contain have none:

* complex32, bcomplex32, complex128, integers below one byte and the bits types: the format doesn't define them;
* ``float4_e2m1fn_x2``: safetensors' ``F4`` counts half bytes, so the shape in the file would differ from the tensor's,
  and a scalar could not be represented.
"""

from __future__ import annotations

import re

from tonnage.errors import FormatUnsupported
from tonnage.record import Record


class Dtype(Record, frozen=True):
    """An element type.

    Attributes:
        stored_name: The name in ``.tensors`` files, including the NUL byte if it has one.
        item_size: Bytes of an element in the file, in memory and in safetensors.
        torch_name: The attribute of ``torch``, such as ``bfloat16``.
        safetensors_name: The name in safetensors headers, or None if the format doesn't support exactly this type.
    """

    stored_name: str
    item_size: int
    torch_name: str
    safetensors_name: str | None


_UNLISTED_TORCH_DTYPE = re.compile(rb"(?:\|V1|<V(2|4|8|16))\0torch\.([a-z][a-z0-9_]{0,63})")


def _plain(stored: str, torch_name: str, safetensors: str | None) -> Dtype:
    return Dtype(stored, int(stored[2:]), torch_name, safetensors)


def _opaque(item_size: int, torch_name: str, safetensors: str | None = None) -> Dtype:
    order = "|" if item_size == 1 else "<"
    return Dtype(f"{order}V{item_size}\0torch.{torch_name}", item_size, torch_name, safetensors)


DTYPES: tuple[Dtype, ...] = (
    _plain("<f2", "float16", "F16"),
    _plain("<f4", "float32", "F32"),
    _plain("<f8", "float64", "F64"),
    _plain("|i1", "int8", "I8"),
    _plain("<i2", "int16", "I16"),
    _plain("<i4", "int32", "I32"),
    _plain("<i8", "int64", "I64"),
    _plain("|u1", "uint8", "U8"),
    _plain("<u2", "uint16", "U16"),
    _plain("<u4", "uint32", "U32"),
    _plain("<u8", "uint64", "U64"),
    _plain("|b1", "bool", "BOOL"),
    _plain("<c8", "complex64", "C64"),
    _plain("<c16", "complex128", None),
    _opaque(2, "bfloat16", "BF16"),
    _opaque(1, "float8_e5m2", "F8_E5M2"),
    _opaque(1, "float8_e4m3fn", "F8_E4M3"),
    _opaque(1, "float8_e5m2fnuz", "F8_E5M2FNUZ"),
    _opaque(1, "float8_e4m3fnuz", "F8_E4M3FNUZ"),
    _opaque(1, "float8_e8m0fnu", "F8_E8M0"),
    _opaque(1, "float4_e2m1fn_x2"),
    _opaque(4, "complex32"),
    _opaque(4, "bcomplex32"),
    *(_opaque(1, f"{sign}int{bits}") for sign in ("", "u") for bits in range(1, 8)),
    _opaque(1, "bits8"),
    _opaque(1, "bits4x2"),
    _opaque(1, "bits2x4"),
    _opaque(1, "bits1x8"),
    _opaque(2, "bits16"),
)
"""Every element type that tensorizer 2.12.1 writes from torch 2.15."""

_BY_STORED = {dtype.stored_name.encode(): dtype for dtype in DTYPES}
_TORCH_NAMES = {dtype.torch_name for dtype in DTYPES}
_BY_SAFETENSORS = {dtype.safetensors_name: dtype for dtype in DTYPES if dtype.safetensors_name is not None}
_HALF_BYTE = next(dtype for dtype in DTYPES if dtype.torch_name == "float4_e2m1fn_x2")
HALF_BYTE_NAME = "F4"
"""Name of the safetensors dtype of half a byte: two elements of a file are one of ``float4_e2m1fn_x2``."""


def parse_dtype(stored: bytes, *, where: str) -> Dtype:
    """Returns the dtype for the name in a ``.tensors`` file.

    Args:
        stored: The bytes of the dtype field.
        where: Prefix of error texts: the object, and the tensor if known.

    Raises:
        FormatUnsupported: It is not listed above, and not an unlisted torch dtype in the opaque encoding.
    """
    dtype = _BY_STORED.get(stored)
    if dtype is not None:
        return dtype
    later = _UNLISTED_TORCH_DTYPE.fullmatch(stored)
    if later is not None and (torch_name := later[2].decode()) not in _TORCH_NAMES:
        return _opaque(int(later[1] or 1), torch_name)
    spelled = stored.decode("ascii", "backslashreplace").replace("\0", " ")
    raise FormatUnsupported(f"{where}: the dtype {spelled!r} is not supported by this release of Tonnage.")


def dtype_from_safetensors(name: str, *, where: str) -> Dtype:
    """Returns the dtype for the name in a safetensors header.

    Args:
        name: The name in the header, such as ``BF16``.
        where: Prefix of error texts.

    Raises:
        FormatUnsupported: The name is unknown, or of a dtype that PyTorch doesn't have.
    """
    dtype = _HALF_BYTE if name == HALF_BYTE_NAME else _BY_SAFETENSORS.get(name)
    if dtype is None:
        raise FormatUnsupported(
            f"{where}: the safetensors dtype {name[:20]!r} is not supported by this release of Tonnage."
        )
    return dtype
