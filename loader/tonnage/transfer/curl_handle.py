"""Finds libcurl's own handle in a handle of pycurl, to set on it what pycurl has no way to set: a callback in C.

pycurl does not show the address. It is in the object's memory, and is believed only with proof: the memory there begins
as libcurl's handles do, and libcurl names the object as the owner of that handle. No memory is read that may not exist.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from functools import cache

import pycurl

_EASY_MAGIC = 0xC0DEDBAD
"""The first four bytes of libcurl's easy handles, as a number."""
_INFO_PRIVATE = 0x100000 + 21
_WRITE_DATA = 10001
_WRITE_FUNCTION = 20011
_WORD = ctypes.sizeof(ctypes.c_void_p)


class LibCurl:
    """The libcurl that pycurl uses.

    Args:
        library: It, or what is linked with it.

    Raises:
        AttributeError: It does not export its functions.
        ValueError: It is not the one that pycurl uses.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._setopt = library.curl_easy_setopt
        self._setopt.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        self._getinfo = library.curl_easy_getinfo
        self._getinfo.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        library.curl_version.restype = ctypes.c_char_p
        if not pycurl.version.endswith(library.curl_version().decode()):
            raise ValueError(pycurl.version)

    def find_handle(self, curl: pycurl.Curl) -> int:
        """Returns the address of libcurl's handle; 0 if it can't be found with certainty."""
        words = (ctypes.c_size_t * (type(curl).__basicsize__ // _WORD)).from_address(id(curl))
        for address in words:
            if (
                address
                and not address % _WORD
                and _first_bytes(address) == _EASY_MAGIC
                and self._owner(address) == id(curl)
            ):
                return address
        return 0

    def set_write_function(self, handle: int, function: int, data: int) -> bool:
        """Sets the function that gets bodies, and its last argument, by their addresses; False: libcurl refused."""
        return not (self._setopt(handle, _WRITE_FUNCTION, function) or self._setopt(handle, _WRITE_DATA, data))

    def _owner(self, handle: int) -> int:
        """Returns what pycurl has set as the handle's owner: the address of its object."""
        found = ctypes.c_void_p()
        return 0 if self._getinfo(handle, _INFO_PRIVATE, ctypes.byref(found)) else found.value or 0


@cache
def libcurl() -> LibCurl | None:
    """Returns the libcurl that pycurl uses; None if its functions can't be reached."""
    if sys.implementation.name != "cpython":  # an object's ID need not be its address
        return None
    module = sys.modules.get("pycurl._pycurl", pycurl)
    with contextlib.suppress(OSError, AttributeError, ValueError, TypeError):
        return LibCurl(ctypes.CDLL(module.__file__))
    return None


def _first_bytes(address: int) -> int:
    """Returns the number in the four bytes at an address; -1 if there is no memory."""
    reader, writer = os.pipe()
    try:
        # The kernel reads them for the pipe, and reports an address without memory as an error.
        if ctypes.CDLL(None).write(writer, ctypes.c_void_p(address), 4) != 4:
            return -1
        return int.from_bytes(os.read(reader, 4), sys.byteorder)
    finally:
        os.close(reader)
        os.close(writer)
