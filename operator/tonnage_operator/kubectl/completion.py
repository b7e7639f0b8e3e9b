"""Completions: kubectl runs ``kubectl_complete-tonnage`` with the words so far, and reads one suggestion a line."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from tonnage_operator.api import names
from tonnage_operator.kubectl.arguments import COMMANDS
from tonnage_operator.kubectl.text import clean

if TYPE_CHECKING:
    from collections.abc import Sequence

_NO_FILES: Final = ":4"
"""The directive of cobra after which the shell offers no files."""
_OPTIONS: Final = (
    "--all-namespaces",
    "--context",
    "--help",
    "--kubeconfig",
    "--namespace",
    "--nodes",
    "--output",
    "--watch",
)
_MAX: Final = 500


def complete(words: Sequence[str]) -> int:
    """Prints suggestions for the last word, which may be empty. Prints none where the cluster can't be asked."""
    last = words[-1] if words else ""
    found = [each for each in _suggestions(list(words[:-1]), last) if each.startswith(last)]
    sys.stdout.write("".join(f"{clean(each, 253)}\n" for each in found[:_MAX]) + _NO_FILES + "\n")
    return 0


def _suggestions(before: list[str], last: str) -> Sequence[str]:
    if last.startswith("-"):
        return _OPTIONS
    given = [each for each in before if not each.startswith("-")]
    if not given:
        return COMMANDS
    kind = {"nodes": names.NODE_CACHE_PLURAL, "why": "pods"}.get(given[0], names.MODEL_WEIGHTS_PLURAL)
    return _names_of(kind, _option(before, "-n", "--namespace"), before) if given[0] in COMMANDS else ()


def _names_of(kind: str, namespace: str, before: list[str]) -> list[str]:
    from tonnage_operator.kubectl.cluster import MODELS, Cluster, ClusterError
    from tonnage_operator.kubectl.objects import name_of

    try:
        cluster = Cluster(_option(before, "", "--kubeconfig"), _option(before, "", "--context"))
        inside = f"/namespaces/{quote(namespace or cluster.namespace, safe='')}/{kind}"
        path = {"pods": f"/api/v1{inside}", names.NODE_CACHE_PLURAL: f"{MODELS}/{kind}"}.get(kind, f"{MODELS}{inside}")
        return sorted(name_of(each) for each in cluster.list(path))
    except ClusterError:
        return []


def _option(words: list[str], short: str, long: str) -> str:
    for at, word in enumerate(words):
        if word in {short, long} and word and at + 1 < len(words):
            return words[at + 1]
        if word.startswith(f"{long}="):
            return word.partition("=")[2]
    return ""
