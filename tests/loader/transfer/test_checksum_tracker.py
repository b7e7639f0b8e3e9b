from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.tensors_writer import build_tensors_file, raw_tensors
from tonnage.contract import Layout
from tonnage.errors import ChecksumMismatch, FormatDamaged
from tonnage.format.tensors_index import PREAMBLE_BYTES, parse_index, parse_preamble
from tonnage.planning.blueprint import EntryShape, SourceObject
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.planning.segments import SpanRole
from tonnage.transfer.checksum_tracker import ChecksumTracker, CorruptTensor, VerifiedTensor

if TYPE_CHECKING:
    from tonnage.planning.blueprint import Blueprint

TENSORS: dict[str | tuple[str | int, ...], torch.Tensor] = {
    "a": torch.arange(300, dtype=torch.float32),
    "empty": torch.zeros(0, 3),
    "b": torch.arange(77, dtype=torch.int16),
    "c": torch.ones(1, dtype=torch.float64),
}


def blueprint_of(data: bytes) -> Blueprint:
    preamble = parse_preamble(data, object_size=len(data), label="s3://b/x")
    tensors = parse_index(preamble, data[PREAMBLE_BYTES:], object_size=len(data), label="s3://b/x")
    source = SourceObject("s3://b/x", "x", len(data), None, tensors, data[: preamble.body_offset])
    return build_blueprint([source], EntryShape(layout=Layout.SAFETENSORS))


def record_bytes(
    tracker: ChecksumTracker, blueprint: Blueprint, data: bytes, start: int, end: int
) -> list[VerifiedTensor | CorruptTensor]:
    """Adds a part as a worker reports it."""
    pieces = blueprint.segments[0].pieces(start, end)
    checksums = [zlib.crc32(data[piece.start : piece.end]) if piece.role is SpanRole.DATA else 0 for piece in pieces]
    captured = [
        data[piece.start : piece.end] if piece.role in {SpanRole.HEADER, SpanRole.TAIL} else b"" for piece in pieces
    ]
    return tracker.add(0, pieces, checksums, captured)


DATA = bytes(build_tensors_file(raw_tensors(TENSORS)).data)
BLUEPRINT = blueprint_of(DATA)


@settings(deadline=None)
@given(st.data())
def test_every_tensor_is_verified_however_its_bytes_are_cut_and_ordered(data: st.DataObject) -> None:
    segment = BLUEPRINT.segments[0]
    cuts = sorted(data.draw(st.sets(st.integers(segment.start + 1, segment.end - 1), max_size=20)))
    bounds = list(zip([segment.start, *cuts], [*cuts, segment.end], strict=True))
    tracker = ChecksumTracker(BLUEPRINT.objects, check_crc32=True)
    settled = [
        outcome
        for start, end in data.draw(st.permutations(bounds))
        for outcome in record_bytes(tracker, BLUEPRINT, DATA, start, end)
    ]
    assert all(isinstance(outcome, VerifiedTensor) for outcome in settled)
    assert sorted(outcome.tensor for outcome in settled) == list(range(len(TENSORS)))
    assert len(tracker.headers) == len(TENSORS)


@settings(deadline=None)
@given(st.data())
def test_a_flip_of_any_bit_of_the_body_is_detected(data: st.DataObject) -> None:
    segment = BLUEPRINT.segments[0]
    at = data.draw(st.integers(segment.start, segment.end - 1))
    changed = bytearray(DATA)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    tracker = ChecksumTracker(BLUEPRINT.objects, check_crc32=True)
    if at >= segment.end - 8:
        with pytest.raises(FormatDamaged, match="s3://b/x"):
            record_bytes(tracker, BLUEPRINT, bytes(changed), segment.start, segment.end)
        return
    outcomes = record_bytes(tracker, BLUEPRINT, bytes(changed), segment.start, segment.end)
    wrong = [outcome for outcome in outcomes if isinstance(outcome, CorruptTensor)]
    # The SHA-256 in a header does not protect the CRC-32 beside it, so CRC-32 alone does not detect a flip there.
    assert len(wrong) <= 1
    tensors = BLUEPRINT.objects[0].tensors_index
    assert tensors is not None
    inside = next(
        (number for number, entry in enumerate(tensors.tensors) if entry.header_offset <= at < entry.data_end), None
    )
    if wrong:
        assert wrong[0].tensor == inside
        assert wrong[0].range[0] <= at < wrong[0].range[1]
    else:
        entry = tensors.tensors[inside or 0]
        digest = (entry.data_offset - 8 - 32, entry.data_offset - 8)
        assert digest[0] <= at < digest[1]


def test_a_discarded_tensor_can_be_added_again() -> None:
    segment = BLUEPRINT.segments[0]
    tensors = BLUEPRINT.objects[0].tensors_index
    assert tensors is not None
    entry = tensors.tensors[0]
    changed = bytearray(DATA)
    changed[entry.data_offset] ^= 1
    tracker = ChecksumTracker(BLUEPRINT.objects, check_crc32=True)
    outcomes = record_bytes(tracker, BLUEPRINT, bytes(changed), segment.start, segment.end)
    wrong = next(outcome for outcome in outcomes if isinstance(outcome, CorruptTensor))
    assert isinstance(wrong.error, ChecksumMismatch)
    tracker.discard(0, wrong.tensor)
    again = record_bytes(tracker, BLUEPRINT, DATA, *wrong.range)
    assert [type(outcome) for outcome in again] == [VerifiedTensor]


def test_without_crc32_only_headers_are_checked() -> None:
    tensors = BLUEPRINT.objects[0].tensors_index
    assert tensors is not None
    changed = bytearray(DATA)
    changed[tensors.tensors[0].data_offset] ^= 1
    tracker = ChecksumTracker(BLUEPRINT.objects, check_crc32=False)
    segment = BLUEPRINT.segments[0]
    outcomes = record_bytes(tracker, BLUEPRINT, bytes(changed), segment.start, segment.end)
    assert all(isinstance(outcome, VerifiedTensor) for outcome in outcomes)


def test_the_error_names_object_tensor_and_bytes() -> None:
    tensors = BLUEPRINT.objects[0].tensors_index
    assert tensors is not None
    entry = tensors.tensors[2]
    changed = bytearray(DATA)
    changed[entry.data_offset + 3] ^= 4
    tracker = ChecksumTracker(BLUEPRINT.objects, check_crc32=True)
    segment = BLUEPRINT.segments[0]
    outcomes = record_bytes(tracker, BLUEPRINT, bytes(changed), segment.start, segment.end)
    wrong = next(outcome for outcome in outcomes if isinstance(outcome, CorruptTensor))
    with pytest.raises(ChecksumMismatch, match=rf"s3://b/x: tensor 'b' \(bytes {entry.header_offset} to"):
        raise wrong.error
