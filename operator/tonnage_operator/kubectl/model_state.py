"""Explains the state of a ``ModelWeights`` and of a ``NodeCache`` from their conditions. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tonnage_operator.kubectl.explanation import FINE, Explanation, next_step
from tonnage_operator.kubectl.objects import conditions_of, items, name_of, number, part, reference_of, text
from tonnage_operator.kubectl.text import clean

if TYPE_CHECKING:
    from tonnage_operator.kubectl.objects import Body

_ORDER: Final = (
    ("Accepted", "False"),
    ("Resolved", "False"),
    ("Ready", "False"),
    ("Degraded", "True"),
    ("Warm", "False"),
    ("Progressing", "True"),
    ("UpdateAvailable", "True"),
)
"""Conditions that differ from the best state, the one that explains most first."""
_STOPPED: Final = {"Suspended", "Backoff", "RolloutBlocked"}
_UNGATED: Final = "GateNotConfigured"
_NODE_ORDER: Final = (("Ready", "False"), ("CapacityPressure", "True"), ("RecordTruncated", "True"))


def explain_model(body: Body) -> Explanation:
    """Returns why a model is not ready, or that it is."""
    subject = f"model {reference_of(body)}"
    if text(body, "metadata", "deletionTimestamp"):
        return Explanation(
            subject, "Deleting", f"{subject} is being deleted, and waits until nodes have evicted its entries.",
            "Look at the Jobs with the label tonnage.dev/loader=cleanup; pods that hold entries are not waited for.",
        )  # fmt: skip
    found = conditions_of(body)
    if not found:
        return Explanation(
            subject, "NotObserved", f"The controller has not seen {subject} yet.",
            "Check that the controller runs: kubectl get pods -A -l app.kubernetes.io/name=tonnage.",
        )  # fmt: skip
    chosen = _first(found, _ORDER)
    progressing = found.get("Progressing")
    if chosen is None and text(progressing, "reason") in _STOPPED:
        chosen = progressing
    if chosen is None and text(found.get("Gated"), "reason") == _UNGATED:
        chosen = found["Gated"]
    if chosen is None:
        chosen = found.get("Ready") or next(iter(found.values()))
    explained = _from_condition(subject, chosen)
    if number(body, "metadata", "generation") > number(body, "status", "observedGeneration"):
        sentence = f"{explained.sentence} The controller has not seen the latest change of the spec."
        return Explanation(subject, explained.reason, sentence, explained.next_step)
    return explained


def explain_node(body: Body) -> Explanation:
    """Returns what is wrong with a node's cache, or that nothing is."""
    subject = f"node {name_of(body)}"
    found = conditions_of(body)
    if not found:
        sentence = f"The controller has recorded nothing of {subject} yet."
        return Explanation(subject, "NotObserved", sentence, "Nothing to do until a model is loaded there.")
    chosen = _first(found, _NODE_ORDER)
    return _from_condition(subject, chosen or found.get("Ready") or next(iter(found.values())))


def failure_on(body: Body, node: str) -> Body:
    """Returns what a model's status has about a failure on a node; empty if there is none."""
    return next((each for each in items(body, "status", "failures") if text(each, "node") == node), {})


def progress_on(body: Body, node: str) -> str:
    """Returns the progress of a model's load as text, if the status has that of the node; else empty."""
    progress = part(body, "status", "progress")
    if text(progress, "node") != node or number(progress, "percent") < 0:
        return ""
    eta = text(progress, "eta")
    return f"{number(progress, 'percent')} %" + (f", {eta} left" if eta else "")


def _first(found: dict[str, Body], order: tuple[tuple[str, str], ...]) -> Body | None:
    return next((found[name] for name, status in order if text(found.get(name), "status") == status), None)


def _from_condition(subject: str, condition: Body) -> Explanation:
    reason, message = clean(text(condition, "reason"), 80), clean(text(condition, "message"))
    name, status = text(condition, "type"), text(condition, "status")
    fine = reason in FINE
    state = {"True": "is", "False": "is not"}.get(status, "may be")
    words = {
        "Degraded": "degraded",
        "CapacityPressure": "under capacity pressure",
        "RecordTruncated": "recorded in part",
    }
    sentence = f"{subject} {state} {words.get(name, name.lower())}: {message or reason}"
    if name == "UpdateAvailable":
        sentence = f"{subject} can be updated: {message}"
    if name == "Progressing" and reason in _STOPPED:
        sentence = f"{subject} has stopped: {message}"
    return Explanation(subject, reason, sentence, "" if fine else next_step(reason, message, condition=name), fine)
