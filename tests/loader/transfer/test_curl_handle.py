"""libcurl's handle is found in a handle of pycurl, or not at all."""

from __future__ import annotations

import ctypes
import gc

import pycurl
import pytest

from tonnage.transfer import curl_handle
from tonnage.transfer.compiled_body import CompiledBody, ReceiveLibrary
from tonnage.transfer.curl_handle import LibCurl, libcurl


class Impostor:
    """An object that has another one's handle in its memory."""

    __slots__ = ("first", "second")


def test_a_handle_is_found_and_is_that_of_the_object() -> None:
    found = libcurl()
    assert found is not None
    handles = [pycurl.Curl() for _ in range(3)]
    addresses = [found.find_handle(curl) for curl in handles]
    assert 0 not in addresses
    assert len(set(addresses)) == len(handles)
    handles[0].reset()
    assert found.find_handle(handles[0]) == addresses[0]


def test_a_closed_handle_is_not_found() -> None:
    found = libcurl()
    assert found is not None
    curl = pycurl.Curl()
    curl.close()
    assert found.find_handle(curl) == 0


def test_another_objects_handle_is_not_believed() -> None:
    found = libcurl()
    assert found is not None
    curl, impostor = pycurl.Curl(), Impostor()
    words = (ctypes.c_size_t * (Impostor.__basicsize__ // ctypes.sizeof(ctypes.c_size_t))).from_address(id(impostor))
    gc.disable()  # this is no reference that it could follow
    words[-1] = found.find_handle(curl)
    try:
        assert found.find_handle(impostor) == 0
    finally:
        words[-1] = 0
        gc.enable()


def test_an_address_without_memory_is_not_read() -> None:
    assert curl_handle._first_bytes(8) == -1


def test_without_libcurls_functions_bodies_are_received_in_python(
    monkeypatch: pytest.MonkeyPatch, receive_library: str
) -> None:
    with pytest.raises(AttributeError):
        LibCurl(ctypes.CDLL(None))
    monkeypatch.setattr("tonnage.transfer.compiled_body.libcurl", lambda: None)
    with pytest.raises(LookupError):
        CompiledBody(ReceiveLibrary(receive_library), pycurl.Curl(), lambda number: number)
