"""Loads the compiled part of the copy, if this installation has it (source: ``loader/native/copy_ring.c``)."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).with_name("copy_ring.so")
ABI = 4
"""The version of the functions and structures; a library with another one is not used."""

_POINTER, _U32, _U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64


class Device(ctypes.Structure):
    """Functions of a driver, as addresses, and what they are called with (``struct device``)."""

    _fields_ = (
        ("set_context", _POINTER),
        ("copy", _POINTER),
        ("copy_batch", _POINTER),
        ("record", _POINTER),
        ("query", _POINTER),
        ("synchronize", _POINTER),
        ("pin", _POINTER),
        ("unpin", _POINTER),
        ("context", _POINTER),
        ("stream", _POINTER),
    )


class Failure(ctypes.Structure):
    """The first failure of a thread (``struct failure``)."""

    _fields_ = (("kind", ctypes.c_int32), ("code", ctypes.c_int32), ("file", ctypes.c_int64), ("offset", _U64))


class Stats(ctypes.Structure):
    """Bytes and nanoseconds of the two ways of reading, and nanoseconds of waiting (``struct read_stats``)."""

    _fields_ = (("bytes", _U64 * 2), ("nanoseconds", _U64 * 2), ("waited", _U64))


_FUNCTIONS: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "ring_create": (_POINTER, (_POINTER, _U32, _U32, _U64, _POINTER, _POINTER, _U64, _U64)),
    "ring_start_threads": (_U32, (_POINTER, _U32)),
    "ring_prepared": (_U32, (_POINTER,)),
    "ring_pinned": (_U64, (_POINTER,)),
    "ring_begin": (None, (_POINTER, _POINTER, _U32)),
    "ring_add_group": (ctypes.c_int, (_POINTER, _U64, _POINTER, _U32)),
    "ring_finish": (None, (_POINTER,)),
    "ring_stop": (None, (_POINTER,)),
    "ring_wait": (_U32, (_POINTER, _U32, ctypes.c_double)),
    "ring_groups_done": (_U32, (_POINTER,)),
    "ring_copied": (_U64, (_POINTER,)),
    "ring_failure": (None, (_POINTER, _POINTER)),
    "ring_read_stats": (None, (_POINTER, _POINTER)),
    "ring_set_active": (None, (_POINTER, _U32)),
    "ring_set_mapped_share": (None, (_POINTER, _U32)),
    "ring_free": (None, (_POINTER,)),
}


def load_library(path: Path = LIBRARY) -> ctypes.CDLL | None:
    """Returns the library; None if it is missing, was built for another machine, or has another ABI."""
    try:
        library = ctypes.CDLL(str(path))
        library.ring_abi.restype = ctypes.c_int
        if library.ring_abi() != ABI:
            return None
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = list(arguments)
    except (OSError, AttributeError):
        return None
    return library


@cache
def native_library() -> ctypes.CDLL | None:
    """Returns this installation's library, which is loaded once; None without one."""
    return load_library()


def function_address(library: ctypes.CDLL, name: str) -> int:
    """Returns the address of a library's function, for ``Device``."""
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0
