"""A pod of ours, or one of a user with loaders in it: small, immutable and comparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.domain.observed.held_entries import parse_held_entries

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.observed.held_entries import HeldEntry


@dataclass(frozen=True, slots=True)
class TerminatedState:
    """How a container ended."""

    exit_code: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class LoaderStatus:
    """One loader container of a pod."""

    name: str
    ready: bool
    """Its entry is ready: the sidecar's startup probe passed, or the plain container ended with 0."""
    terminated: TerminatedState | None
    waiting_reason: str
    waiting_message: str
    memory_limit: str = ""
    """As the pod states it; empty: none."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of ours, or one of a user with loaders in it."""

    namespace: str
    name: str
    uid: str
    role: str
    model_uid: str
    job_uid: str
    node: str
    phase: str
    reason: str
    message: str
    created: str
    unschedulable_message: str
    """Why the scheduler finds no node; empty while nothing is wrong."""
    held_entries: tuple[HeldEntry, ...]
    loaders: tuple[LoaderStatus, ...]
    deleting: bool
    creating_since: str = ""
    """When it came to its node, while its loader's container isn't made yet; empty else."""
    required_volumes: tuple[str, ...] = ()
    """The ConfigMaps and Secrets whose keys must be there before its containers are made."""

    @property
    def is_terminal(self) -> bool:
        """All of its containers ended for good, so it holds nothing any more."""
        return self.phase in {"Succeeded", "Failed"}


def _parse_loader_status(status: Body, container: Body) -> LoaderStatus:
    state = status.get("state") or {}
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
    waiting = state.get("waiting") or {}
    finished = (state.get("terminated") or {}).get("exitCode") == 0
    running = "running" in state and bool(status.get("started"))
    return LoaderStatus(
        name=status["name"],
        ready=running or finished,
        terminated=TerminatedState(ended.get("exitCode", -1), ended.get("reason", ""), ended.get("message", ""))
        if ended
        else None,
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        memory_limit=((container.get("resources") or {}).get("limits") or {}).get("memory", ""),
    )


def _creating_since(status: Body) -> str:
    waiting = [(each.get("state") or {}).get("waiting") or {} for each in status.get("containerStatuses") or ()]
    times = [
        each.get("lastTransitionTime") or ""
        for each in status.get("conditions") or ()
        if (each["type"], each["status"]) == ("PodScheduled", "True")
    ]
    return times[0] if times and any(each.get("reason") == "ContainerCreating" for each in waiting) else ""


def _required_volumes(spec: Body) -> tuple[str, ...]:
    found = []
    for volume in spec.get("volumes") or ():
        for member, kind, name in (("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")):
            source = volume.get(member) or {}
            if source and not source.get("optional"):
                keys = ", ".join(item["key"] for item in source.get("items") or ())
                found.append(f"{kind} {source.get(name, '')}" + (f" with key {keys}" if keys else ""))
    return tuple(found)


def parse_pod(body: Body) -> Pod:
    """Returns what matters of a pod."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    owners = [each["uid"] for each in metadata.get("ownerReferences") or () if each.get("kind") == "Job"]
    unplaced = [
        each.get("message", "")
        for each in status.get("conditions") or ()
        if (each["type"], each["status"], each.get("reason")) == ("PodScheduled", "False", "Unschedulable")
    ]
    statuses = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    containers = {each["name"]: each for part in ("initContainers", "containers") for each in spec.get(part) or ()}
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        role=labels.get(names.ROLE, ""),
        model_uid=labels.get(names.MODEL_UID, ""),
        job_uid=owners[0] if owners else "",
        node=spec.get("nodeName", ""),
        phase=status.get("phase", ""),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        created=metadata.get("creationTimestamp") or "",
        unschedulable_message=unplaced[0] if unplaced else "",
        held_entries=parse_held_entries(annotations.get(names.ENTRIES, "")),
        loaders=tuple(
            _parse_loader_status(each, containers.get(each["name"]) or {})
            for each in statuses
            if each["name"].startswith(names.LOADER_CONTAINER)
        ),
        creating_since=_creating_since(status) if owners else "",
        required_volumes=_required_volumes(spec) if owners else (),
        deleting="deletionTimestamp" in metadata,
    )
