"""Which files readers may see before the load has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from support.blueprints import source_object
from support.models import make_tensors, to_tensors_file
from tonnage.contract import Layout
from tonnage.planning.blueprint import EntryShape
from tonnage.planning.blueprint_builder import build_blueprint
from tonnage.transfer.complete_files import CompleteFiles

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tonnage.planning.blueprint import Blueprint


class Step(NamedTuple):
    """Bytes of a segment have arrived, or a tensor was verified."""

    segment: int = -1
    size: int = 0
    half: int = 0
    tensor: tuple[int, int] = (-1, -1)


def make_blueprint(folder: Path, layout: Layout) -> Blueprint:
    path = folder / "model.tensors"
    if not path.exists():
        path.write_bytes(to_tensors_file(make_tensors(count=9, rows=8)))
    return build_blueprint([source_object(path)], EntryShape(layout=layout, segment_size=16 << 10))


def steps_of(blueprint: Blueprint) -> list[Step]:
    halves = [(each, each.size // 2) for each in blueprint.segments]
    found = [Step(each.index, half, 0) for each, half in halves]
    found += [Step(each.index, each.size - half, 1) for each, half in halves]
    return found + [Step(tensor=(each.object_index, each.tensor_index)) for each in blueprint.placements]


@given(data=st.data(), layout=st.sampled_from(list(Layout)))
def test_a_file_is_complete_with_its_last_byte_and_its_last_tensor_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, layout: Layout
) -> None:
    blueprint = make_blueprint(tmp_path_factory.getbasetemp(), layout)
    complete = CompleteFiles(blueprint)
    needed = {
        number: {step for step in steps_of(blueprint) if is_of(blueprint, step, number)}
        for number in range(len(blueprint.files))
    }
    found = set(complete.take())
    assert found == {number for number, steps in needed.items() if not steps}
    done: set[Step] = set()
    for step in data.draw(st.permutations(steps_of(blueprint))):
        done.add(step)
        if step.segment >= 0:
            complete.add_bytes(step.segment, step.size)
        else:
            complete.add_tensor(step.tensor)
        found |= set(complete.take())
        assert found == {number for number, steps in needed.items() if steps <= done}
    assert len(found) == len(blueprint.files)


def is_of(blueprint: Blueprint, step: Step, file: int) -> bool:
    if step.segment >= 0:
        return step.size > 0 and blueprint.segments[step.segment].file_index == file
    return any(
        each.file_index == file and (each.object_index, each.tensor_index) == step.tensor
        for each in blueprint.placements
    )


def test_a_corrupt_tensor_keeps_its_file_back_until_it_has_arrived_again(tmp_path: Path) -> None:
    blueprint = make_blueprint(tmp_path, Layout.TENSORIZER)
    complete = CompleteFiles(blueprint)
    for step in steps_of(blueprint)[:-1]:
        complete.add_bytes(step.segment, step.size) if step.segment >= 0 else complete.add_tensor(step.tensor)
    last = steps_of(blueprint)[-1].tensor
    complete.remove_bytes(0, 1)
    complete.add_tensor(last)
    assert list(complete.take()) == []
    complete.remove_tensor(last)
    complete.add_bytes(0, 1)
    assert list(complete.take()) == []
    complete.add_tensor(last)
    assert len(list(complete.take())) == 1
