"""Explains why a pod waits for its weights, has failed, or had to download them. Pure.

A loader's failure is found by the functions with which the controller finds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tonnage.contract.report import Outcome
from tonnage.contract.sizes import human_bytes
from tonnage_operator.api import names
from tonnage_operator.domain.observed import job_results
from tonnage_operator.domain.observed.pod import parse_pod
from tonnage_operator.domain.reasons import EventReason
from tonnage_operator.kubectl.explanation import WAIT, Explanation, next_step
from tonnage_operator.kubectl.model_state import explain_model, explain_node, failure_on, progress_on
from tonnage_operator.kubectl.objects import items, name_of, part, reference_of, text
from tonnage_operator.kubectl.text import clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.contract import Report
    from tonnage_operator.domain.observed.pod import LoaderStatus, Pod
    from tonnage_operator.kubectl.objects import Body

_REQUESTS: Final = (names.MODEL, names.MODELS)
_MAX_MODELS: Final = 16


@dataclass(frozen=True)
class PodContext:
    """A pod and what was readable of its surroundings.

    Attributes:
        pod: The pod.
        events: Events about it, in any order.
        models: The models that it requests, by ``namespace/name``; None: there is no such object.
        node: The ``NodeCache`` of its node; None: none, or not readable.
        missing_rights: What could not be read.
    """

    pod: Body
    events: Sequence[Body] = ()
    models: Mapping[str, Body | None] = field(default_factory=dict)
    node: Body | None = None
    missing_rights: Sequence[str] = ()


def requested_models(pod: Body) -> list[str]:
    """Returns ``namespace/name`` of the models that a pod's annotations request, in their order."""
    annotations, namespace = part(pod, "metadata", "annotations"), text(pod, "metadata", "namespace")
    listed = [str(annotations.get(names.MODEL) or ""), *str(annotations.get(names.MODELS) or "").split(",")]
    found = [each.partition("=")[2].strip() or each.strip() for each in listed]
    return list(dict.fromkeys(each if "/" in each else f"{namespace}/{each}" for each in found if each))[:_MAX_MODELS]


def explain_pod(context: PodContext) -> Explanation:
    """Returns why a pod is in its state, as far as its weights are concerned."""
    pod = context.pod
    subject = f"pod {reference_of(pod)}"
    annotations = part(pod, "metadata", "annotations")
    if names.INJECTED not in annotations:
        return _explain_without_loader(subject, annotations)
    if text(pod, "metadata", "deletionTimestamp"):
        return Explanation(subject, "Deleting", f"{subject} is being deleted.", is_fine=True)
    parsed = parse_pod(pod)
    unplaced = _explain_unplaced(subject, context, parsed)
    if unplaced is not None:
        return unplaced
    for loader in parsed.loaders:
        problem = _explain_loader(subject, context, parsed, loader)
        if problem is not None:
            return problem
    if not parsed.loaders:
        return _explain_not_started(subject, context)
    return _explain_loaded(subject, context, parsed)


def explain_missing_pod(name: str, namespace: str, events: Sequence[Body]) -> Explanation | None:
    """Returns why a pod was never created, from events of its owners; None if they have nothing about it."""
    for event in sorted(events, key=_time_of, reverse=True):
        owner = text(event, "involvedObject", "name")
        if text(event, "reason") == "FailedCreate" and owner and (name == owner or name.startswith(f"{owner}-")):
            message = clean(text(event, "message"))
            kind = text(event, "involvedObject", "kind")
            return Explanation(
                f"{kind} {namespace}/{owner}",
                "PodNotCreated",
                f"The pods of {kind} {namespace}/{owner} are not created: {message}",
                next_step(_reason_in(message), message)
                or "Follow the message; the pods are created once its cause is gone.",
            )
    return None


def _explain_without_loader(subject: str, annotations: Body) -> Explanation:
    if not any(each in annotations for each in _REQUESTS):
        return Explanation(
            subject, "NotRequested", f"{subject} requests no weights.",
            f"Set the annotation {names.MODEL} in the pod's template, if it should.", is_fine=True,
        )  # fmt: skip
    if str(annotations.get(names.INJECT, "")).lower() == "false":
        return Explanation(
            subject, "InjectionOff", f"{subject} got no loader, because its annotation {names.INJECT} is false.",
            "Remove the annotation, and create the pod again.",
        )  # fmt: skip
    return Explanation(
        subject,
        "NotInjected",
        f"{subject} requests weights, but was created without the webhook: it was not running, or its chart's values "
        "exclude the namespace or the pod.",
        "Delete the pod so that its controller creates it again; check the value webhook.excludedNamespaces.",
    )


def _explain_unplaced(subject: str, context: PodContext, pod: Pod) -> Explanation | None:
    gates = [text(each, "name") for each in items(context.pod, "spec", "schedulingGates")]
    if gates:
        sentence = f"{subject} is held by the scheduling gate {clean(', '.join(gates), 200)}."
        return Explanation(subject, "SchedulingGated", sentence, "The component that set the gate removes it.")
    if pod.unschedulable_message:
        message = clean(pod.unschedulable_message, 600)
        model = _first_problem(context)
        cold = f" {model.sentence}" if model is not None and not model.is_fine else ""
        step = model.next_step if cold and model is not None else ""
        cold += _waiting_for_warm_node(context)
        return Explanation(
            subject, "LoaderUnschedulable", f"{subject} can't be scheduled: {message}{cold}",
            step or next_step("LoaderUnschedulable"),
        )  # fmt: skip
    if not pod.node and pod.phase == "Pending":
        sentence = f"{subject} is not scheduled yet."
        return Explanation(subject, "NotScheduled", sentence, "Look at the scheduler if this lasts for a minute.")
    return None


def _waiting_for_warm_node(context: PodContext) -> str:
    """Returns what the controller's last event about a pod without a node has; empty if there is none."""
    found = [each for each in context.events if text(each, "reason") == EventReason.WAITING_FOR_WARM_NODE]
    return f" {clean(text(max(found, key=_time_of), 'message'), 400)}" if found else ""


def _explain_loader(subject: str, context: PodContext, pod: Pod, loader: LoaderStatus) -> Explanation | None:
    """Returns what keeps a loader from being ready; None if nothing does."""
    start = job_results.loader_start_failure(loader)
    failure = start or job_results.loader_failure(pod, loader, 0)
    report = job_results.termination_report(loader)
    if failure is not None and not loader.ready:
        again = f" It has been started {loader.restarts + 1} times." if loader.restarts else ""
        message = clean(failure.message)
        step = next_step(failure.reason, failure.message) or (report.remedy if report else "")
        sentence = f"The loader of {subject} on {pod.node} failed: {message}{again}"
        return Explanation(subject, failure.reason, clean(sentence), clean(step))
    if loader.ready:
        return None
    if loader.running:
        return _explain_running(subject, context, pod)
    return _explain_not_started(subject, context)


def _explain_running(subject: str, context: PodContext, pod: Pod) -> Explanation:
    for body in context.models.values():
        if body is not None and (progress := progress_on(body, pod.node)):
            sentence = f"{subject} waits for its loader on {pod.node}, which has {progress}."
            return Explanation(subject, "Loading", sentence, WAIT)
    why = _why_cold(context, pod.node)
    sentence = (
        f"{subject} waits for its loader on {pod.node}, which downloads the weights, or waits for room or a load."
    )
    log = f"See its log: kubectl logs -n {pod.namespace} {pod.name} -c {names.LOADER_CONTAINER}."
    return Explanation(subject, "Loading", f"{sentence}{why}", log)


def _explain_not_started(subject: str, context: PodContext) -> Explanation:
    warnings = sorted((each for each in context.events if text(each, "type") == "Warning"), key=_time_of)
    if warnings:
        message = f"{text(warnings[-1], 'reason')}: {clean(text(warnings[-1], 'message'), 600)}"
        return Explanation(
            subject, "ContainerNotStarted", f"{subject} is scheduled, but its loader can't start. {message}",
            "Follow the message; the loader starts by itself once its cause is gone.",
        )  # fmt: skip
    sentence = f"{subject} is scheduled, and its node has not started the loader yet."
    return Explanation(subject, "ContainerCreating", sentence, "Nothing to do for some seconds; then see the node.")


def _explain_loaded(subject: str, context: PodContext, pod: Pod) -> Explanation:
    reports = [job_results.termination_report(each) for each in pod.loaders]
    failed = next((each for each in reports if each is not None and each.reason), None)
    if failed is not None:
        sentence = f"{subject} runs without weights, as it asked for (on-failure: continue): {clean(failed.message)}"
        return Explanation(subject, clean(failed.reason, 80), sentence, next_step(failed.reason, failed.message))
    how = _how_loaded(context, pod, [each for each in reports if each is not None])
    serving = _not_ready(context.pod)
    if serving:
        return Explanation(
            subject, "WeightsReady", f"{subject} has its weights, but {serving}{how}",
            f"See the container's log: kubectl logs -n {pod.namespace} {pod.name}.",
        )  # fmt: skip
    return Explanation(subject, "Ready", f"{subject} has its weights.{how}{_outdated(context)}", is_fine=True)


def _how_loaded(context: PodContext, pod: Pod, reports: Sequence[Report]) -> str:
    """Returns whether the weights were in the cache, and if not, why."""
    loaded = next((each for each in reports if each.outcome is Outcome.LOADED), None)
    if loaded is not None:
        size, seconds = human_bytes(loaded.downloaded_bytes, "column"), loaded.seconds
        rate = f" at {loaded.downloaded_bytes / seconds / 1e9:.2f} GB/s" if seconds else ""
        why = _why_cold(context, pod.node)
        return f" They were downloaded: {size} in {seconds:.1f} s{rate}.{why}"
    hit = next((each for each in reports if each.outcome is Outcome.HIT), None)
    return f" They were in the cache of {pod.node} ({hit.seconds:.1f} s)." if hit is not None else ""


def _why_cold(context: PodContext, node: str) -> str:
    for reference, body in context.models.items():
        if body is None:
            continue
        failure = failure_on(body, node)
        if failure:
            reason, message = clean(text(failure, "reason"), 80), clean(text(failure, "message"), 300)
            return f" The last load of {reference} on {node} failed: {reason}: {message}"
        if text(body, "spec", "placement", "prewarm") in {"", "None"}:
            return f" {reference} is not prewarmed (spec.placement.prewarm: None), so the first pod on a node loads it."
    if context.node is not None:
        state = explain_node(context.node)
        if not state.is_fine:
            return f" {state.sentence}"
    return ""


def _first_problem(context: PodContext) -> Explanation | None:
    """Returns the state of the first requested model that is missing or not ready; else of the first one."""
    states = []
    for reference, body in context.models.items():
        if body is None:
            sentence = f"There is no ModelWeights {clean(reference, 320)}."
            return Explanation(reference, "ModelMissing", sentence, "Create it, or correct the pod's annotation.")
        states.append(explain_model(body))
    return next((each for each in states if not each.is_fine), states[0] if states else None)


def _outdated(context: PodContext) -> str:
    used = str(part(context.pod, "metadata", "annotations").get(names.REVISION, ""))
    for body in context.models.values():
        current = text(body, "status", "resolved", "revision") if body is not None else ""
        if body is not None and current and name_of(body) and used and current not in used:
            return f" It uses an older revision; {reference_of(body)} now has {clean(current, 80)}."
    return ""


def _not_ready(pod: Body) -> str:
    """Returns why a container of the user is not ready, as the end of a sentence; empty if all are."""
    for status in items(pod, "status", "containerStatuses"):
        name = clean(text(status, "name"), 80)
        if part(status, "state").get("waiting") is not None:
            waiting = part(status, "state", "waiting")
            return (
                f"container {name} waits: {clean(text(waiting, 'reason'), 80)} {clean(text(waiting, 'message'), 300)}"
            )
        ended = part(status, "state", "terminated")
        if ended and text(ended, "exitCode") != "0":
            return f"container {name} ended with code {clean(text(ended, 'exitCode'), 10)}."
        if not ended and not status.get("ready"):
            return f"container {name} is not ready."
    return ""


def _reason_in(message: str) -> str:
    """Returns the stable reason that a message quotes as ``Reason: ``; empty if there is none."""
    words = message.replace(":", " ").split()
    return next((word for word in words if next_step(word)), "")


def _time_of(event: Body) -> str:
    return text(event, "lastTimestamp") or text(event, "eventTime") or text(event, "metadata", "creationTimestamp")
