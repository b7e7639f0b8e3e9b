"""The plugin's commands: they read objects, and print what the pure functions make of them."""

from __future__ import annotations

import json
import re
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from tonnage_operator.api import names
from tonnage_operator.kubectl import tables
from tonnage_operator.kubectl.cluster import MODELS, Cluster, ClusterError
from tonnage_operator.kubectl.model_state import explain_model, explain_node
from tonnage_operator.kubectl.objects import part, text
from tonnage_operator.kubectl.pod_state import PodContext, explain_missing_pod, explain_pod, requested_models
from tonnage_operator.kubectl.text import clean, utc_now

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable

    from tonnage_operator.kubectl.explanation import Explanation
    from tonnage_operator.kubectl.objects import Body

OK: Final = 0
NOT_FINE: Final = 1
_CLEAR: Final = "\x1b[H\x1b[2J"
_NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_MAX_NODES: Final = 10_000


class UsageProblem(Exception):
    """The command line can't be meant so."""


def _draws() -> bool:
    return sys.stdout.isatty()


def _print(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _print_json(found: Any) -> None:  # noqa: ANN401 - anything that JSON has
    _print([json.dumps(found, indent=2, ensure_ascii=True)])


def _namespace(options: argparse.Namespace, cluster: Cluster) -> str:
    return str(options.namespace or cluster.namespace)


def _model_path(namespace: str, name: str) -> str:
    return f"{MODELS}/namespaces/{quote(namespace, safe='')}/{names.MODEL_WEIGHTS_PLURAL}/{quote(name, safe='')}"


def _find_model(options: argparse.Namespace, cluster: Cluster) -> Body:
    return cluster.get(_model_path(_namespace(options, cluster), options.model))


def status(options: argparse.Namespace, cluster: Cluster) -> int:
    """``kubectl tonnage status``."""
    if options.model and options.all_namespaces:
        raise UsageProblem("MODEL and -A can't be combined: name a namespace with -n.")
    if options.model:
        return _status_of_one(options, cluster)
    inside = "" if options.all_namespaces else f"/namespaces/{quote(_namespace(options, cluster), safe='')}"
    path = f"{MODELS}{inside}/{names.MODEL_WEIGHTS_PLURAL}"

    def show() -> None:
        found = cluster.list(path)
        if options.output:
            _print_json({"items": [_json_of(each) for each in found]})
        elif found:
            _print(tables.model_table(found, utc_now(), namespaces=options.all_namespaces, bars=_draws()))
        else:
            where = "the cluster" if options.all_namespaces else f"namespace {_namespace(options, cluster)}"
            _print([f"There are no ModelWeights in {where}."])

    show()
    while options.watch:
        _redraw(show, cluster.watch(path))
    return OK


def _status_of_one(options: argparse.Namespace, cluster: Cluster) -> int:
    namespace = _namespace(options, cluster)
    found = _find_model(options, cluster)

    def show() -> None:
        nonlocal found
        found = cluster.get(_model_path(namespace, options.model))
        _show_model(found, options)

    _show_model(found, options)
    path = f"{MODELS}/namespaces/{quote(namespace, safe='')}/{names.MODEL_WEIGHTS_PLURAL}"
    while options.watch and not explain_model(found).is_fine:
        for _ in cluster.watch(path, fieldSelector=f"metadata.name={options.model}"):
            _redraw(show, ())
            if explain_model(found).is_fine:
                break
    return OK if explain_model(found).is_fine else NOT_FINE


def _show_model(body: Body, options: argparse.Namespace) -> None:
    if options.output:
        _print_json(_json_of(body))
    else:
        _print(tables.model_details(body, utc_now(), bars=_draws()))


def _redraw(show: Callable[[], None], events: Iterable[Body]) -> None:
    """Shows again after each event; in a terminal in the same place. Without events: once."""
    for _ in events or (None,):
        if _draws():
            sys.stdout.write(_CLEAR)
        show()


def nodes(options: argparse.Namespace, cluster: Cluster) -> int:
    """``kubectl tonnage nodes``."""
    path = f"{MODELS}/{names.NODE_CACHE_PLURAL}"
    if options.node:
        found = cluster.get(f"{path}/{quote(options.node, safe='')}")
        if options.output:
            _print_json(found)
        else:
            _print(tables.node_details(found, utc_now(), bars=_draws()))
        return OK
    all_nodes = cluster.list(path)
    if options.output:
        _print_json({"items": all_nodes})
    elif all_nodes:
        _print(tables.node_table(all_nodes, bars=_draws()))
    else:
        _print(["No node has a record yet: nothing was loaded."])
    return OK


def why(options: argparse.Namespace, cluster: Cluster) -> int:
    """``kubectl tonnage why``."""
    namespace = _namespace(options, cluster)
    kind, slash, name = options.subject.partition("/")
    missing: list[str] = []
    if not slash or kind in {"pod", "pods", "po"}:
        explained, missing = _why_pod(name if slash else kind, namespace, cluster)
    elif kind in {"mw", "modelweights"}:
        explained = explain_model(cluster.get(_model_path(namespace, name)))
    elif kind in {"node", "nodes", "nodecache", "nodecaches"}:
        explained = explain_node(cluster.get(f"{MODELS}/{names.NODE_CACHE_PLURAL}/{quote(name, safe='')}"))
    else:
        raise UsageProblem(f"{clean(options.subject, 100)} is not a pod, mw/NAME or node/NAME.")
    _show_explanation(explained, missing, options)
    return OK if explained.is_fine else NOT_FINE


def _why_pod(name: str, namespace: str, cluster: Cluster) -> tuple[Explanation, list[str]]:
    missing: list[str] = []

    def optional(read: Callable[[], Any], otherwise: Any) -> Any:  # noqa: ANN401
        """Returns what may be read; where the right or the object is missing, ``otherwise``."""
        try:
            return read()
        except ClusterError as error:
            if error.forbidden:
                missing.append(error.message)
            elif not error.missing:
                raise
            return otherwise

    place = f"/api/v1/namespaces/{quote(namespace, safe='')}"
    try:
        pod = cluster.get(f"{place}/pods/{quote(name, safe='')}")
    except ClusterError as error:
        if not error.missing:
            raise
        events = optional(lambda: cluster.list(f"{place}/events", fieldSelector="reason=FailedCreate"), [])
        explained = explain_missing_pod(name, namespace, events)
        if explained is None:
            raise
        return explained, missing
    events = optional(
        lambda: cluster.list(f"{place}/events", fieldSelector=f"involvedObject.uid={text(pod, 'metadata', 'uid')}"), []
    )
    models: dict[str, Body | None] = {}
    for reference in requested_models(pod):
        owner, _, model = reference.partition("/")
        before = len(missing)
        found = optional(partial(cluster.get, _model_path(owner, model)), None)
        if len(missing) == before:
            models[reference] = found
    node = text(pod, "spec", "nodeName")
    cache = (
        optional(lambda: cluster.get(f"{MODELS}/{names.NODE_CACHE_PLURAL}/{quote(node, safe='')}"), None)
        if node
        else None
    )
    return explain_pod(PodContext(pod, events, models, cache, missing)), missing


def _show_explanation(explained: Explanation, missing: list[str], options: argparse.Namespace) -> None:
    if options.output:
        _print_json(
            {
                "subject": explained.subject, "reason": explained.reason, "message": explained.sentence,
                "nextStep": explained.next_step, "fine": explained.is_fine, "missingRights": missing,
            }
        )  # fmt: skip
        return
    sentence = explained.sentence[:1].upper() + explained.sentence[1:]
    lines = [f"{explained.reason}: {clean(sentence)}"]
    if explained.next_step:
        lines.append(f"  → {clean(explained.next_step)}")
    lines += [f"  (not looked at, for want of a right: {clean(each)})" for each in missing]
    _print(lines)


def warm(options: argparse.Namespace, cluster: Cluster) -> int:
    """``kubectl tonnage warm``."""
    found = _find_model(options, cluster)
    placement = placement_for(options.nodes, part(found, "spec", "placement"))
    path = _model_path(_namespace(options, cluster), options.model)
    patch: Body = {"metadata": {"annotations": {names.RETRY: str(int(time.time()))}}}
    if placement:
        patch["spec"] = {"placement": placement}
    changed = cluster.merge_patch(path, patch)
    if options.watch:
        return _status_of_one(options, cluster)
    if options.output:
        _print_json(_json_of(changed))
    else:
        mode, count = text(changed, "spec", "placement", "prewarm"), text(changed, "spec", "placement", "count")
        which = f"{count} nodes" if count else "all matching nodes"
        _print(
            [
                f"{options.model} is prewarmed on {which} from now on (spec.placement.prewarm: {mode}).",
                f"  → See it with: kubectl tonnage status {options.model} -n {_namespace(options, cluster)} --watch",
            ]
        )
    return OK


def placement_for(wanted: str, placement: Body) -> Body:
    """Returns what to change in ``spec.placement``; empty if it prewarms already and nothing else is asked for.

    Raises:
        UsageProblem: ``wanted`` is neither a number, nor ``all``, nor names of nodes.
    """
    if not wanted:
        return {} if text(placement, "prewarm") not in {"", "None"} else {"prewarm": "AllMatching", "count": None}
    if wanted == "all":
        return {"prewarm": "AllMatching", "count": None}
    if wanted.isascii() and wanted.isdigit():
        if not 1 <= int(wanted[:9]) <= _MAX_NODES:
            raise UsageProblem(f"--nodes must be from 1 to {_MAX_NODES:,}.")
        return {"prewarm": "Count", "count": int(wanted)}
    listed = [each.strip() for each in wanted.split(",") if each.strip()]
    wrong = next((each for each in listed if not _NODE_NAME.fullmatch(each)), "" if listed else wanted)
    if wrong or not listed:
        raise UsageProblem(f"--nodes {clean(wrong, 100)!r} is not a number, all, or names of nodes.")
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [each]}]} for each in listed]
    return {"prewarm": "AllMatching", "count": None, "nodeAffinity": {"nodeSelectorTerms": terms}}


def history(options: argparse.Namespace, cluster: Cluster) -> int:
    """``kubectl tonnage history``."""
    found = _find_model(options, cluster)
    if options.output:
        _print_json({"items": tables.revision_rows(found)})
    elif tables.revision_rows(found):
        _print(tables.history_table(found, utc_now()))
    else:
        _print([f"No revision of {options.model} is known yet.", f"  → kubectl tonnage why mw/{options.model}"])
    return OK


def _json_of(body: Body) -> Body:
    """Returns an object's state for programs: the explanation beside the status that the operator wrote."""
    state = explain_model(body)
    return {
        "namespace": text(body, "metadata", "namespace"), "name": text(body, "metadata", "name"),
        "reason": state.reason, "message": state.sentence, "nextStep": state.next_step, "fine": state.is_fine,
        "status": part(body, "status"),
    }  # fmt: skip
