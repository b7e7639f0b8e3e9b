"""The tables of the plugin: rows of models, nodes and revisions. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.sizes import human_bytes
from tonnage_operator.kubectl.model_state import explain_model
from tonnage_operator.kubectl.objects import conditions_of, items, name_of, number, part, text
from tonnage_operator.kubectl.text import age, bar, clean, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from tonnage_operator.kubectl.objects import Body

_SHORT_REVISION = 14
_MAX_FAILURES = 10


def model_table(models: Sequence[Body], now: datetime, *, namespaces: bool, bars: bool) -> list[str]:
    """Returns a line for each model. ``bars``: progress is drawn, for a terminal."""
    header = ["NAME", "READY", "NODES", "PROGRESS", "SIZE", "REVISION", "REASON", "AGE"]
    rows = []
    for body in models:
        state = explain_model(body)
        rows.append(
            [
                name_of(body),
                text(conditions_of(body).get("Ready"), "status") or "Unknown",
                text(body, "status", "nodes", "summary"),
                progress_cell(body, bars=bars),
                text(body, "status", "size"),
                text(body, "status", "resolved", "revision")[:_SHORT_REVISION],
                state.reason,
                age(text(body, "metadata", "creationTimestamp"), now),
            ]
        )
    if namespaces:
        header.insert(0, "NAMESPACE")
        rows = [[text(body, "metadata", "namespace"), *row] for body, row in zip(models, rows, strict=True)]
    return table(header, rows)


def progress_cell(body: Body, *, bars: bool) -> str:
    """Returns the progress of the slowest loading node; empty if no node loads."""
    percent = number(body, "status", "progress", "percent")
    if not part(body, "status", "progress") or percent < 0:
        return ""
    return bar(percent / 100) if bars else f"{percent}%"


def model_details(body: Body, now: datetime, *, bars: bool) -> list[str]:
    """Returns what is known of one model, line by line."""
    state = explain_model(body)
    status = part(body, "status")
    warm, desired = number(status, "nodes", "warm"), number(status, "nodes", "desired")
    lines = [clean(state.sentence)]
    if state.next_step:
        lines.append(f"  → {state.next_step}")
    facts = [
        ("source", text(status, "source")),
        ("revision", text(status, "resolved", "revision")),
        ("size", text(status, "size")),
        ("verified by", text(status, "verifiedBy")),
        ("pods", text(status, "consumers", "pods")),
    ]
    lines += ["", *(f"{name:<12} {clean(value, 300)}" for name, value in facts if value)]
    if desired:
        lines.append(f"{'nodes':<12} {bar(warm / desired) + '  ' if bars else ''}{warm} of {desired} warm")
    progress = part(status, "progress")
    if progress:
        rate = human_bytes(number(progress, "bytesPerSecond"), "column")
        drawn = progress_cell(body, bars=bars)
        eta = text(progress, "eta")
        left = f", {eta} left" if eta else ""
        lines.append(f"{'slowest':<12} {drawn}  {clean(text(progress, 'node'), 253)}, {rate}/s{clean(left, 40)}")
    rollout = part(status, "rollout")
    if rollout:
        phase = "new pods get it" if rollout.get("inUse") else f"new pods get {text(rollout, 'previous')}"
        outdated = f"{number(rollout, 'outdated')} nodes lack it"
        lines.append(f"{'rollout':<12} " + clean(f"{text(rollout, 'revision')}: {outdated}, {phase}"))
    failures = items(status, "failures")[:_MAX_FAILURES]
    if failures:
        rows = [
            [
                text(each, "node"),
                text(each, "reason"),
                text(each, "attempts"),
                age(text(each, "time"), now),
                text(each, "message"),
            ]
            for each in failures
        ]
        lines += ["", *table(["FAILED ON", "REASON", "ATTEMPTS", "AGE", "MESSAGE"], rows)]
    conditions = [
        [text(each, "type"), text(each, "status"), text(each, "reason"), age(text(each, "lastTransitionTime"), now)]
        for each in items(status, "conditions")
    ]
    return [*lines, "", *table(["CONDITION", "STATUS", "REASON", "SINCE"], conditions)]


def node_table(nodes: Iterable[Body], *, bars: bool) -> list[str]:
    """Returns a line for each medium of each node."""
    rows = []
    for body in nodes:
        found = conditions_of(body)
        problem = next(
            (
                text(found[name], "reason")
                for name, status in (("Ready", "False"), ("CapacityPressure", "True"))
                if text(found.get(name), "status") == status
            ),
            "",
        )
        states = [(text(each, "medium"), text(each, "state")) for each in items(body, "status", "entries")]
        for medium in items(body, "status", "media") or [{}]:
            name = text(medium, "name")
            used, capacity = number(medium, "usedBytes"), number(medium, "capacityBytes")
            share = (bar(used / capacity, width=12) if bars else f"{used / capacity:.0%}") if capacity else ""
            rows.append(
                [
                    name_of(body),
                    name,
                    human_bytes(used, "column"),
                    human_bytes(number(medium, "reservedBytes"), "column"),
                    human_bytes(number(medium, "freeBytes"), "column"),
                    share,
                    str(sum(each == (name, "Ready") for each in states)),
                    str(sum(each == (name, "Loading") for each in states)),
                    problem or text(found.get("Ready"), "reason"),
                ]
            )
    return table(["NODE", "MEDIUM", "USED", "RESERVED", "FREE", "FULL", "ENTRIES", "LOADING", "REASON"], rows)


def node_details(body: Body, now: datetime, *, bars: bool) -> list[str]:
    """Returns a node's media and entries."""
    rows = [
        [
            text(each, "name"),
            text(each, "medium"),
            text(each, "state"),
            human_bytes(number(each, "bytes"), "column"),
            text(each, "revision")[:_SHORT_REVISION],
            age(text(each, "lastUsedTime"), now),
            ", ".join(map(str, (part(each) or {}).get("models") or ())),
        ]
        for each in items(body, "status", "entries")
    ]
    header = ["ENTRY", "MEDIUM", "STATE", "SIZE", "REVISION", "USED", "MODELS"]
    return [*node_table([body], bars=bars), "", *table(header, rows)]


def revision_rows(body: Body) -> list[dict[str, str]]:
    """Returns the known revisions of a model, the newest first, each with its role."""
    pinned = text(body, "spec", "revision", "pin")
    found = []
    for role, path in (("available", "available"), ("in use", "resolved")):
        if part(body, "status", path):
            found.append((role, part(body, "status", path)))
    found += [("previous", each) for each in items(body, "status", "history")]
    return [
        {
            "number": text(each, "number"),
            "revision": text(each, "revision"),
            "role": role + (", pinned" if pinned and text(each, "revision") == pinned else ""),
            "digest": text(each, "digest"),
            "size": human_bytes(number(each, "totalBytes"), "column"),
            "objects": text(each, "objectCount"),
            "source": text(each, "source"),
            "time": text(each, "usedTime") or text(each, "time"),
        }
        for role, each in found
    ]


def history_table(body: Body, now: datetime) -> list[str]:
    """Returns a line for each known revision, and how to go back to an earlier one."""
    rows = revision_rows(body)
    lines = table(
        ["NUMBER", "REVISION", "ROLE", "SIZE", "OBJECTS", "SINCE", "SOURCE"],
        [
            [
                each["number"],
                each["revision"],
                each["role"],
                each["size"],
                each["objects"],
                age(each["time"], now),
                each["source"],
            ]
            for each in rows
        ],
    )
    previous = next((each["revision"] for each in rows if each["role"].startswith("previous")), "")
    if previous:
        namespace, name = text(body, "metadata", "namespace"), name_of(body)
        patch = f'{{"spec":{{"revision":{{"pin":"{clean(previous, 80)}"}}}}}}'
        lines += ["", f"To go back: kubectl patch mw -n {namespace} {name} --type=merge -p '{patch}'"]
    return lines
