"""Parses the annotations with which a pod requests models. Each error message names the annotation."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage.contract import ranks
from tonnage_operator.api import names
from tonnage_operator.api.modelweights import MAX_RANKS, LoaderForm
from tonnage_operator.api.placement import Scheduling
from tonnage_operator.domain import units
from tonnage_operator.domain.observed.held_entries import MAX_HELD_ENTRIES, MAX_RANKS_LENGTH

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALIAS: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


_ON: Final = "true"
_OFF: Final = "false"


class InvalidAnnotation(Exception):
    """An annotation is invalid. The message names it and describes valid values."""


class OnFailure(enum.StrEnum):
    """Whether a pod starts if its weights can't be loaded."""

    FAIL = "fail"
    CONTINUE = "continue"


class Wait(enum.StrEnum):
    """What a pod waits for before its containers start."""

    LOADED = "Loaded"
    """All weights are loaded and published."""
    STREAMING = "Streaming"
    """The table of files is there; an engine that can wait reads the files while they are loaded."""


@dataclass(frozen=True, slots=True)
class RequestedModel:
    """One requested model. ``alias`` is the name of its folder and part of its environment variables' names."""

    alias: str
    namespace: str
    name: str
    is_only_model: bool
    """Requested by the annotation for a single model, which has no alias."""

    @property
    def env_suffix(self) -> str:
        """The alias in the names of environment variables."""
        return re.sub(r"[^A-Z0-9]", "_", self.alias.upper())


@dataclass(frozen=True, slots=True)
class PodRequest:
    """All annotations of a pod, parsed."""

    namespace: str
    """The pod's."""
    models: tuple[RequestedModel, ...]
    mount_path: str = names.DEFAULT_MOUNT_PATH
    containers: tuple[str, ...] | None = None
    ranks: tuple[int, ...] | None = None
    ranks_text: str = ""
    form: LoaderForm | None = None
    scheduling: Scheduling | None = None
    on_failure: OnFailure = OnFailure.FAIL
    cpu: str | None = None
    memory: str | None = None
    artifacts: bool = False
    same_revision: bool = True
    """The pod gets the revision of its group, if it is of one."""
    wait: Wait = Wait.LOADED

    @property
    def streams(self) -> bool:
        """Whether the pod starts before its weights are loaded."""
        return self.wait is Wait.STREAMING

    @property
    def has_status_file(self) -> bool:
        """Whether the pod's containers read the result of the load from a file."""
        return self.streams or self.on_failure is OnFailure.CONTINUE

    """Containers get a writable folder for what engines compile."""
    vllm_plugin: bool = False
    """Containers get the plugin of vLLM for the load format ``tonnage``."""


def requests_weights(annotations: Mapping[str, str]) -> bool:
    """Returns whether the pod requests weights and injection is not turned off."""
    wants = names.MODEL in annotations or names.MODELS in annotations
    return wants and annotations.get(names.INJECT, "").strip().lower() != _OFF


def parse_on_failure(annotations: Mapping[str, str]) -> OnFailure:
    """Returns the pod's failure mode. Works even if other annotations are invalid."""
    return OnFailure.CONTINUE if annotations.get(names.ON_FAILURE) == OnFailure.CONTINUE.value else OnFailure.FAIL


def _parse_model(text: str, alias: str | None, namespace: str, where: str) -> RequestedModel:
    first, slash, second = text.strip().partition("/")
    model_namespace, name = (first, second) if slash else (namespace, first)
    if not _NAME.fullmatch(name) or not _NAME.fullmatch(model_namespace):
        raise InvalidAnnotation(f"{where}: {text!r} is neither the name of a ModelWeights nor namespace/name.")
    return RequestedModel(alias if alias is not None else name, model_namespace, name, is_only_model=alias is None)


def _parse_models(annotations: Mapping[str, str], namespace: str) -> tuple[RequestedModel, ...]:
    if names.MODEL in annotations and names.MODELS in annotations:
        raise InvalidAnnotation(f"Set only one of the annotations {names.MODEL} and {names.MODELS}.")
    if names.MODEL in annotations:
        return (_parse_model(annotations[names.MODEL], None, namespace, names.MODEL),)
    found = []
    for part in annotations[names.MODELS].split(","):
        alias, equals, text = part.strip().partition("=")
        if not equals or not _ALIAS.fullmatch(alias):
            raise InvalidAnnotation(f"{names.MODELS}: {part.strip()!r} is not alias=name; an alias is like 'draft-1'.")
        found.append(_parse_model(text, alias, namespace, names.MODELS))
    if len(found) > MAX_HELD_ENTRIES:
        raise InvalidAnnotation(f"{names.MODELS}: a pod has at most {MAX_HELD_ENTRIES} models.")
    for attribute in ("alias", "env_suffix"):
        values = [getattr(each, attribute) for each in found]
        if len(set(values)) != len(values):
            raise InvalidAnnotation(
                f"{names.MODELS}: two aliases are the same, or map to the same environment variable."
            )
    return tuple(found)


def _parse_ranks(text: str) -> tuple[int, ...]:
    try:
        wanted = ranks.parse_ranks(text, highest=MAX_RANKS - 1)
    except ValueError as error:
        raise InvalidAnnotation(f"{names.RANKS}: {error}.") from error
    if len(ranks.format_ranks(wanted)) > MAX_RANKS_LENGTH:
        raise InvalidAnnotation(f"{names.RANKS}: lists too many separate ranges of ranks.")
    return wanted


def _parse_enum(annotations: Mapping[str, str], key: str, values: type[enum.StrEnum]) -> enum.StrEnum | None:
    """Returns the member with this value, ignoring case."""
    if key not in annotations:
        return None
    for member in values:
        if member.value.lower() == annotations[key].strip().lower():
            return member
    raise InvalidAnnotation(f"{key}: {annotations[key]!r} is not one of {', '.join(each.value for each in values)}.")


def _parse_switch(annotations: Mapping[str, str], key: str, *, default: str = _OFF) -> bool:
    """Returns whether an annotation is set to true, ignoring case."""
    value = annotations.get(key, default).strip().lower()
    if value not in {_ON, _OFF}:
        raise InvalidAnnotation(f'{key}: {annotations[key]!r} is neither "true" nor "false".')
    return value == _ON


def _parse_quantity(annotations: Mapping[str, str], key: str) -> str | None:
    if key not in annotations:
        return None
    try:
        units.parse_quantity(annotations[key])
    except ValueError as error:
        raise InvalidAnnotation(f"{key}: {error}.") from error
    return annotations[key].strip()


def parse_annotations(annotations: Mapping[str, str], *, namespace: str) -> PodRequest:
    """Parses the annotations of a pod that requests weights.

    Args:
        annotations: The pod's annotations.
        namespace: The pod's namespace: the default for models without a namespace.

    Raises:
        InvalidAnnotation: An annotation is invalid.
    """
    _parse_switch(annotations, names.INJECT)
    path = annotations.get(names.MOUNT_PATH, names.DEFAULT_MOUNT_PATH).rstrip("/")
    if not re.fullmatch(r"(/[^/\s:]+)+", path) or "/../" in f"{path}/" or "/./" in f"{path}/":
        raise InvalidAnnotation(f"{names.MOUNT_PATH}: {path!r} is not an absolute path such as /models.")
    containers = None
    if names.CONTAINERS in annotations:
        containers = tuple(each.strip() for each in annotations[names.CONTAINERS].split(",") if each.strip())
        if not containers:
            raise InvalidAnnotation(f"{names.CONTAINERS}: is empty; remove the annotation to select all containers.")
    form, scheduling = (
        _parse_enum(annotations, names.FORM, LoaderForm),
        _parse_enum(annotations, names.SCHEDULING, Scheduling),
    )
    on_failure = _parse_enum(annotations, names.ON_FAILURE, OnFailure)
    wait = _parse_enum(annotations, names.WAIT, Wait)
    wanted = _parse_ranks(annotations[names.RANKS]) if names.RANKS in annotations else None
    return PodRequest(
        namespace=namespace,
        models=_parse_models(annotations, namespace),
        mount_path=path,
        containers=containers,
        ranks=wanted,
        ranks_text=ranks.format_ranks(wanted or ()),
        form=LoaderForm(form.value) if form else None,
        scheduling=Scheduling(scheduling.value) if scheduling else None,
        on_failure=OnFailure(on_failure.value) if on_failure else OnFailure.FAIL,
        cpu=_parse_quantity(annotations, names.LOADER_CPU),
        memory=_parse_quantity(annotations, names.LOADER_MEMORY),
        artifacts=_parse_switch(annotations, names.ARTIFACTS),
        same_revision=_parse_switch(annotations, names.SAME_REVISION, default=_ON),
        wait=Wait(wait.value) if wait else Wait.LOADED,
        vllm_plugin=_parse_switch(annotations, names.VLLM_PLUGIN),
    )
