"""Pods of Jobs, and users' pods with injected loaders. Immutable and comparable, so unchanged pods are skipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tonnage_operator.api import names
from tonnage_operator.domain import signing
from tonnage_operator.domain.observed.held_entries import is_signed, parse_held_entries

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.observed.held_entries import HeldEntry
    from tonnage_operator.domain.signing import SigningKeys


@dataclass(frozen=True, slots=True)
class TerminatedState:
    """Exit code, reason and termination message of a container."""

    exit_code: int
    reason: str
    message: str
    finished_time: str = ""


@dataclass(frozen=True, slots=True)
class LoaderStatus:
    """Status of one loader container."""

    name: str
    ready: bool
    """Its entry is ready: the init container exited with code 0, or the sidecar started, and its probes passed."""
    terminated: TerminatedState | None
    waiting_reason: str
    waiting_message: str
    memory_limit: str = ""
    """Memory limit as a quantity; empty: none."""
    restarts: int = 0
    started: bool = False
    """The kubelet has started it at least once, so it may have written to its entry."""
    running: bool = False
    """It runs now. If it has run before, ``terminated`` is about an earlier run."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A parsed pod."""

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
    """Why the scheduler finds no node; empty if the pod is schedulable."""
    held_entries: tuple[HeldEntry, ...]
    """Those with which the webhook admitted the pod; empty if its annotation is not signed."""
    loaders: tuple[LoaderStatus, ...]
    deleting: bool
    creating_since: str = ""
    """When the pod was scheduled, while its container is still being created; empty otherwise."""
    admission: str = ""
    """Uid of the admission review of an injected pod."""
    signature: str = ""
    """The signature of the Job that created the pod, unverified."""
    forged: bool = False
    """It lists held entries with which it was not admitted."""
    scheduling: str = ""
    """The value of its annotation ``tonnage.dev/scheduling``; empty: that of its models counts."""
    required_volumes: tuple[str, ...] = ()
    """ConfigMaps and Secrets, with keys, that must exist before its containers can be created."""
    ip: str = ""
    """The address of a peer; empty for other pods, and before it has one."""
    host_ip: str = ""
    """The address of a peer's node."""
    ready: bool = False
    """Whether a peer is ready to serve; False for other pods."""

    @property
    def is_terminal(self) -> bool:
        """Whether all containers have terminated and won't restart, so the pod no longer holds entries."""
        return self.phase in {"Succeeded", "Failed"}


def _parse_loader_status(status: Body, container: Body) -> LoaderStatus:
    state = status.get("state") or {}
    ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
    waiting = state.get("waiting") or {}
    finished = (state.get("terminated") or {}).get("exitCode") == 0
    running = "running" in state and bool(status.get("started")) and status.get("ready", True)
    return LoaderStatus(
        name=status["name"],
        ready=running or finished,
        terminated=_parse_terminated(ended) if ended else None,
        waiting_reason=waiting.get("reason", ""),
        waiting_message=waiting.get("message", ""),
        restarts=status.get("restartCount") or 0,
        started="running" in state or ended is not None,
        running="running" in state,
        memory_limit=((container.get("resources") or {}).get("limits") or {}).get("memory", ""),
    )


def _parse_terminated(state: Body) -> TerminatedState:
    return TerminatedState(
        exit_code=state.get("exitCode", -1),
        reason=state.get("reason", ""),
        message=state.get("message", ""),
        finished_time=state.get("finishedAt") or "",
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


def parse_pod(body: Body, keys: SigningKeys = signing.NO_KEYS) -> Pod:
    """Parses a pod, and verifies its held entries with the installation's keys."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    owners = [
        each["uid"]
        for each in metadata.get("ownerReferences") or ()
        if each.get("kind") == "Job" and each.get("controller")
    ]
    listed = annotations.get(names.ENTRIES, "")
    held_entries = parse_held_entries(listed) if listed and is_signed(metadata, keys) else ()
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
        held_entries=held_entries,
        loaders=tuple(
            _parse_loader_status(each, containers.get(each["name"]) or {})
            for each in statuses
            if each["name"].startswith(names.LOADER_CONTAINER)
        ),
        creating_since=_creating_since(status) if owners else "",
        required_volumes=_required_volumes(spec) if owners else (),
        deleting="deletionTimestamp" in metadata,
        admission=annotations.get(names.ADMISSION, "") if held_entries else "",
        signature=annotations.get(names.SIGNATURE, "") if owners else "",
        forged=bool(listed) and not held_entries,
        scheduling=annotations.get(names.SCHEDULING, "").capitalize() if held_entries else "",
        **(_peer_fields(status) if labels.get(names.ROLE) == names.ROLE_PEER else {}),
    )


def _peer_fields(status: Body) -> Body:
    ready = [each["status"] for each in status.get("conditions") or () if each["type"] == "Ready"]
    return {"ip": status.get("podIP") or "", "host_ip": status.get("hostIP") or "", "ready": ready == ["True"]}
