"""Loads weights into a module: matches names, checks shapes and dtypes, then replaces or overwrites the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from tonnage.attach.copy.device_copier import needs_conversion
from tonnage.attach.copy.tensor_views import torch_dtype
from tonnage.attach.errors import ModuleMismatch
from tonnage.format.tensor_names import short_repr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tonnage.attach.files.tensor_info import TensorInfo
    from tonnage.attach.progress import ProgressReporter

_SHOWN = 200
"""Maximum number of mismatches of each kind in the message; the error's attributes have all."""

_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class LoadResult(NamedTuple):
    """Names that were not loaded into a module.

    Attributes:
        missing: Names that only the module has. Empty if strict.
        unexpected: Names that only the weights have. Empty if strict.
        left_on_meta: Parameters and buffers that are still on the meta device, because the weights don't have them:
            usually buffers that modules compute at construction, which the caller must compute.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_on_meta: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The functions of ``Weights`` that loading a module needs.

    Attributes:
        view: Returns a tensor on the CPU, unconverted.
        reporter: Returns the progress reporter for a load of these tensors.
        load: Returns the tensors on the device, by name.
        stream: Calls a function with each tensor while it is on the device.
    """

    view: Callable[[TensorInfo], torch.Tensor]
    reporter: Callable[[list[TensorInfo]], ProgressReporter]
    load: Callable[[list[TensorInfo], torch.device, torch.dtype | None, ProgressReporter], Mapping[str, torch.Tensor]]
    stream: Callable[
        [list[TensorInfo], torch.device, Callable[[TensorInfo, torch.Tensor], None], ProgressReporter], None
    ]


class Binding(NamedTuple):
    """A name of a parameter or buffer, with the module that owns it and its attribute there."""

    name: str
    owner: torch.nn.Module
    attribute: str


@dataclass(slots=True)
class ModuleTensor:
    """A parameter or buffer of the module, with all its names.

    Attributes:
        tensor: The module's current tensor.
        is_parameter: Whether it is a parameter.
        persistent: Whether the module's state has it under some name: all but non-persistent buffers.
        bindings: Its names; several where modules share it.
    """

    tensor: torch.Tensor
    is_parameter: bool
    persistent: bool
    bindings: list[Binding] = field(default_factory=list)

    @property
    def is_lazy(self) -> bool:
        """Whether its shape is not known yet."""
        return torch.nn.parameter.is_lazy(self.tensor)


class _Move(NamedTuple):
    target: ModuleTensor
    record: TensorInfo
    device: torch.device
    dtype: torch.dtype


def list_module_tensors(module: torch.nn.Module) -> list[ModuleTensor]:
    """Returns all parameters and buffers, each once."""
    found: dict[int, ModuleTensor] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        for attribute, parameter in owner._parameters.items():  # noqa: SLF001  # no public way to owner and attribute
            if parameter is not None:
                target = found.setdefault(id(parameter), ModuleTensor(parameter, is_parameter=True, persistent=True))
                target.bindings.append(Binding(dot + attribute, owner, attribute))
        for attribute, buffer in owner._buffers.items():  # noqa: SLF001
            if buffer is not None:
                persistent = attribute not in owner._non_persistent_buffers_set  # noqa: SLF001
                target = found.setdefault(id(buffer), ModuleTensor(buffer, is_parameter=False, persistent=persistent))
                target.persistent |= persistent
                target.bindings.append(Binding(dot + attribute, owner, attribute))
    return list(found.values())


def load_into_module(
    module: torch.nn.Module,
    records: Mapping[str, TensorInfo],
    source: TensorSource,
    *,
    device: torch.device | None,
    strict: bool,
    dtype: torch.dtype | None,
    label: str,
) -> LoadResult:
    """Loads the weights into the module; see ``Weights.load_into``.

    Raises:
        ModuleMismatch: Module and weights do not match. Nothing was changed.
    """
    targets = list_module_tensors(module)
    moves: list[_Move] = []
    tied_pairs: list[tuple[TensorInfo, TensorInfo]] = []
    missing: list[str] = []
    differing: list[str] = []
    for target in targets:
        matches = [records[place.name] for place in target.bindings if place.name in records]
        if not matches:
            missing += [target.bindings[0].name] if target.persistent else []
            continue
        target_device = device or (torch.device("cpu") if target.tensor.is_meta else target.tensor.device)
        problem, target_dtype = _compare(target, matches[0], dtype, strict=strict)
        if problem:
            differing.append(f"{short_repr(matches[0].name)} {problem}")
            continue
        moves.append(_Move(target, matches[0], target_device, target_dtype))
        tied_pairs += [(matches[0], other) for other in matches[1:]]
    module_names = {binding.name for target in targets for binding in target.bindings}
    unexpected = [name for name in records if name not in module_names]
    differing += _find_tied_conflicts(tied_pairs, source)
    if differing or (strict and (missing or unexpected)):
        raise _mismatch(module, label, missing if strict else [], unexpected if strict else [], differing)
    with source.reporter([move.record for move in moves]) as reporter:
        _apply(moves, source, dtype, reporter)
    left_on_meta = [
        place.name for target in list_module_tensors(module) if target.tensor.is_meta for place in target.bindings
    ]
    return LoadResult(tuple(missing), tuple(unexpected), tuple(left_on_meta))


def _compare(
    target: ModuleTensor, record: TensorInfo, dtype: torch.dtype | None, *, strict: bool
) -> tuple[str, torch.dtype]:
    """Returns the mismatch of a pair (empty if there is none), and the dtype that the module's tensor will have."""
    stored = torch_dtype(record)
    loaded_dtype = dtype if dtype is not None and needs_conversion(record, dtype) else stored
    if target.is_lazy:
        return "is not initialized in the module: run the module once, or give its layers their sizes", loaded_dtype
    if tuple(target.tensor.shape) != record.shape:
        return (
            f"has the shape {tuple(target.tensor.shape)} in the module and {record.shape} in the weights",
            loaded_dtype,
        )
    module_dtype = target.tensor.dtype
    if loaded_dtype == module_dtype or (dtype is not None and loaded_dtype == dtype and module_dtype in _FLOATING):
        return "", loaded_dtype
    if not strict and loaded_dtype in _FLOATING and module_dtype in _FLOATING:
        return "", module_dtype
    return f"is {_dtype_name(module_dtype)} in the module and {_dtype_name(loaded_dtype)} in the weights", loaded_dtype


def _find_tied_conflicts(tied_pairs: list[tuple[TensorInfo, TensorInfo]], source: TensorSource) -> list[str]:
    """Describes tied names of the module under which the weights have different tensors."""
    return [
        f"{short_repr(one.name)} and {short_repr(other.name)} are one tensor in the module and two different tensors "
        "in the weights"
        for one, other in tied_pairs
        if (one.dtype, one.shape) != (other.dtype, other.shape)
        or not torch.equal(_bytes(source.view(one)), _bytes(source.view(other)))
    ]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Views a contiguous tensor as bytes, so that NaN equals itself and every dtype can be compared."""
    return tensor.reshape(-1).view(torch.uint8)


def _apply(moves: list[_Move], source: TensorSource, dtype: torch.dtype | None, reporter: ProgressReporter) -> None:
    """Loads what needs new memory first, then overwrites in place: running out of memory then changes nothing."""
    reallocated = [move for move in moves if not _in_place(move)]
    loaded: list[tuple[_Move, torch.Tensor]] = []
    for device in dict.fromkeys(move.device for move in reallocated):
        some = [move for move in reallocated if move.device == device]
        tensors = source.load([move.record for move in some], device, dtype, reporter)
        loaded += [(move, tensors[move.record.name]) for move in some]
    with torch.no_grad():
        for device in dict.fromkeys(move.device for move in moves):
            in_place = {move.record.name: move for move in moves if move.device == device and _in_place(move)}
            if in_place:

                def overwrite(
                    record: TensorInfo, tensor: torch.Tensor, in_place: Mapping[str, _Move] = in_place
                ) -> None:
                    in_place[record.name].target.tensor.copy_(tensor)

                source.stream([move.record for move in in_place.values()], device, overwrite, reporter)
        for move, tensor in loaded:
            _assign(move, tensor if tensor.dtype == move.dtype else tensor.to(move.dtype))


def _in_place(move: _Move) -> bool:
    tensor = move.target.tensor
    return not tensor.is_meta and tensor.device == move.device and tensor.dtype == move.dtype


def _assign(move: _Move, tensor: torch.Tensor) -> None:
    """Assigns a new tensor to all of the target's names. Keeps the parameter object, except on the meta device."""
    target = move.target
    old = target.tensor
    if not target.is_parameter:
        for binding in target.bindings:
            binding.owner._buffers[binding.attribute] = tensor  # noqa: SLF001  # register_buffer would reset its persistence
        return
    if not old.is_meta:
        old.data = tensor
        return
    requires_grad = old.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
    parameter = torch.nn.Parameter(tensor, requires_grad=requires_grad)
    for binding in target.bindings:
        binding.owner._parameters[binding.attribute] = parameter  # noqa: SLF001  # one object under all names


def _mismatch(
    module: torch.nn.Module, label: str, missing: list[str], unexpected: list[str], differing: list[str]
) -> ModuleMismatch:
    lines = [f"{type(module).__name__} and the weights of {label} do not match:"]
    for what, names in (("missing in the weights", missing), ("unknown to the module", unexpected)):
        if names:
            lines.append(f"  {len(names)} {what}: {', '.join(map(short_repr, names[:_SHOWN]))}{_more(names)}")
    lines += [f"  {text}" for text in differing[:_SHOWN]]
    if len(differing) > _SHOWN:
        lines.append(f"  and {len(differing) - _SHOWN} more")
    return ModuleMismatch(
        "\n".join(lines), missing=tuple(missing), unexpected=tuple(unexpected), differing=tuple(differing)
    )


def _more(names: list[str]) -> str:
    return f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
