"""Weights into a module: what goes where, whether the two agree, and doing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from tonnage.attach.errors import ModuleMismatch
from tonnage.attach.upload import converts
from tonnage.attach.views import torch_dtype
from tonnage.format.names import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tonnage.attach.progress import Reporter
    from tonnage.attach.records import Record

_SHOWN = 200
"""Disagreements of each kind that the message lists; the error's attributes hold all."""

_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class LoadResult(NamedTuple):
    """What loading into a module left out.

    Attributes:
        missing: Names that the module has and the weights have not. Empty if strict.
        unexpected: Names that the weights have and the module has not. Empty if strict.
        left_on_meta: Parameters and buffers that still hold no data, because the weights don't have them: as a rule
            buffers that are computed when a module is built, and that the caller has to compute.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_on_meta: tuple[str, ...]


class Source(Protocol):
    """Where tensors come from."""

    def view(self, record: Record) -> torch.Tensor:
        """Returns a tensor in the machine's own memory, unconverted."""

    def reporter(self, records: list[Record]) -> Reporter:
        """Returns what is to be told how far bringing these is, altogether."""

    def load(
        self, records: list[Record], device: torch.device, dtype: torch.dtype | None, reporter: Reporter
    ) -> dict[str, torch.Tensor]:
        """Returns the tensors on the device."""

    def stream(
        self,
        records: list[Record],
        device: torch.device,
        use: Callable[[Record, torch.Tensor], None],
        reporter: Reporter,
    ) -> None:
        """Calls ``use`` with each tensor in turn."""


class Place(NamedTuple):
    """A name of a parameter or buffer: the module that owns it, and under which attribute."""

    name: str
    owner: torch.nn.Module
    attribute: str


@dataclass(slots=True)
class Target:
    """A parameter or buffer of the module, with all its names.

    Attributes:
        tensor: What the module has now.
        is_parameter: Whether it is a parameter.
        kept: Whether the module's state has it under some name: all but non-persistent buffers.
        places: Its names; several where modules share it.
    """

    tensor: torch.Tensor
    is_parameter: bool
    kept: bool
    places: list[Place] = field(default_factory=list)

    @property
    def is_lazy(self) -> bool:
        """Whether its shape isn't known yet."""
        return torch.nn.parameter.is_lazy(self.tensor)


class _Move(NamedTuple):
    target: Target
    record: Record
    device: torch.device
    dtype: torch.dtype


def targets_of(module: torch.nn.Module) -> list[Target]:
    """Returns all parameters and buffers, each once."""
    found: dict[int, Target] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for attribute, parameter in owner._parameters.items():  # noqa: SLF001  # no public way to owner and attribute
            if parameter is not None:
                target = found.setdefault(id(parameter), Target(parameter, is_parameter=True, kept=True))
                target.places.append(Place(dot + attribute, owner, attribute))
        for attribute, buffer in owner._buffers.items():  # noqa: SLF001
            if buffer is not None:
                kept = attribute not in owner._non_persistent_buffers_set  # noqa: SLF001
                target = found.setdefault(id(buffer), Target(buffer, is_parameter=False, kept=kept))
                target.kept |= kept
                target.places.append(Place(dot + attribute, owner, attribute))
    return list(found.values())


def fill_module(
    module: torch.nn.Module,
    records: Mapping[str, Record],
    source: Source,
    *,
    device: torch.device | None,
    strict: bool,
    dtype: torch.dtype | None,
    label: str,
) -> LoadResult:
    """Gives the module the weights; see ``Weights.load_into``.

    Raises:
        ModuleMismatch: They disagree; nothing was changed.
    """
    targets = targets_of(module)
    moves: list[_Move] = []
    twins: list[tuple[Record, Record]] = []
    missing: list[str] = []
    differing: list[str] = []
    for target in targets:
        there = [records[place.name] for place in target.places if place.name in records]
        if not there:
            missing += [target.places[0].name] if target.kept else []
            continue
        where = device or (torch.device("cpu") if target.tensor.is_meta else target.tensor.device)
        problem, wanted = _compare(target, there[0], dtype, strict=strict)
        if problem:
            differing.append(f"{shown(there[0].name)} {problem}")
            continue
        moves.append(_Move(target, there[0], where, wanted))
        twins += [(there[0], other) for other in there[1:]]
    known = {place.name for target in targets for place in target.places}
    unexpected = [name for name in records if name not in known]
    differing += _unequal(twins, source)
    if differing or (strict and (missing or unexpected)):
        raise _mismatch(module, label, missing if strict else [], unexpected if strict else [], differing)
    with source.reporter([move.record for move in moves]) as reporter:
        _apply(moves, source, dtype, reporter)
    left = [place.name for target in targets_of(module) if target.tensor.is_meta for place in target.places]
    return LoadResult(tuple(missing), tuple(unexpected), tuple(left))


def _compare(target: Target, record: Record, dtype: torch.dtype | None, *, strict: bool) -> tuple[str, torch.dtype]:
    """What is wrong with a pair (or nothing), and the dtype that the module's tensor will have."""
    stored = torch_dtype(record)
    after = dtype if dtype is not None and converts(record, dtype) else stored
    if target.is_lazy:
        return "is not built yet in the module: run the module once, or give its layers their sizes", after
    if tuple(target.tensor.shape) != record.shape:
        return f"has the shape {tuple(target.tensor.shape)} in the module and {record.shape} in the weights", after
    mine = target.tensor.dtype
    if after == mine or (dtype is not None and after == dtype and mine in _FLOATING):
        return "", after
    if not strict and after in _FLOATING and mine in _FLOATING:
        return "", mine
    return f"is {_short(mine)} in the module and {_short(after)} in the weights", after


def _unequal(twins: list[tuple[Record, Record]], source: Source) -> list[str]:
    """Names that the module has for one tensor, and the weights for two that differ."""
    return [
        f"{shown(one.name)} and {shown(other.name)} are one tensor in the module and two different in the weights"
        for one, other in twins
        if (one.dtype, one.shape) != (other.dtype, other.shape)
        or not torch.equal(_bytes(source.view(one)), _bytes(source.view(other)))
    ]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's bytes, so that NaN equals itself and every dtype can be compared."""
    return tensor.reshape(-1).view(torch.uint8)


def _apply(moves: list[_Move], source: Source, dtype: torch.dtype | None, reporter: Reporter) -> None:
    """First what needs new memory, then what is overwritten: running out of memory then changes nothing."""
    fresh = [move for move in moves if not _in_place(move)]
    loaded: list[tuple[_Move, torch.Tensor]] = []
    for device in dict.fromkeys(move.device for move in fresh):
        some = [move for move in fresh if move.device == device]
        tensors = source.load([move.record for move in some], device, dtype, reporter)
        loaded += [(move, tensors[move.record.name]) for move in some]
    with torch.no_grad():
        for device in dict.fromkeys(move.device for move in moves):
            places = {move.record.name: move for move in moves if move.device == device and _in_place(move)}
            if places:

                def overwrite(record: Record, tensor: torch.Tensor, places: Mapping[str, _Move] = places) -> None:
                    places[record.name].target.tensor.copy_(tensor)

                source.stream([move.record for move in places.values()], device, overwrite, reporter)
        for move, tensor in loaded:
            _assign(move, tensor if tensor.dtype == move.dtype else tensor.to(move.dtype))


def _in_place(move: _Move) -> bool:
    tensor = move.target.tensor
    return not tensor.is_meta and tensor.device == move.device and tensor.dtype == move.dtype


def _assign(move: _Move, tensor: torch.Tensor) -> None:
    """Puts new memory under the target's names: into the same parameter where that can be, else into a new one."""
    target = move.target
    old = target.tensor
    if not target.is_parameter:
        for place in target.places:
            place.owner._buffers[place.attribute] = tensor  # noqa: SLF001  # register_buffer would lose its persistence
        return
    if not old.is_meta:
        old.data = tensor
        return
    learns = old.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
    parameter = torch.nn.Parameter(tensor, requires_grad=learns)
    for place in target.places:
        place.owner._parameters[place.attribute] = parameter  # noqa: SLF001  # one object under all names


def _mismatch(
    module: torch.nn.Module, label: str, missing: list[str], unexpected: list[str], differing: list[str]
) -> ModuleMismatch:
    lines = [f"{type(module).__name__} and the weights of {label} disagree:"]
    for what, names in (("missing in the weights", missing), ("unknown to the module", unexpected)):
        if names:
            lines.append(f"  {len(names)} {what}: {', '.join(map(shown, names[:_SHOWN]))}{_more(names)}")
    lines += [f"  {text}" for text in differing[:_SHOWN]]
    if len(differing) > _SHOWN:
        lines.append(f"  and {len(differing) - _SHOWN} more")
    return ModuleMismatch(
        "\n".join(lines), missing=tuple(missing), unexpected=tuple(unexpected), differing=tuple(differing)
    )


def _more(names: list[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
