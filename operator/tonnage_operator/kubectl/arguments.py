"""The plugin's command line and help."""

from __future__ import annotations

import argparse
from typing import Final

from tonnage_operator import __version__

COMMANDS: Final = ("status", "nodes", "why", "warm", "history", "completion")
_EPILOG: Final = """\
examples:
  Which models are there, and are they on their nodes?
    kubectl tonnage status -A
  One model, until it is ready:
    kubectl tonnage status llama-70b -n serving --watch
  Why does this pod wait, why has it failed, why did it download?
    kubectl tonnage why vllm-7d9c5-x2x9p -n serving
  Load a model onto three nodes now:
    kubectl tonnage warm llama-70b -n serving --nodes 3

The plugin has your rights: the ClusterRole view is enough to read, edit for `warm`. Where a right is
missing it names it, and shows the rest.
"""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = argparse.ArgumentParser(
        prog="kubectl tonnage",
        description="Shows models, nodes and pods of Tonnage, and why something waits or has failed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"kubectl-tonnage {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = _add(
        commands,
        "status",
        "models: ready, on how many nodes, progress, reason",
        "With MODEL: its conditions, failures and progress in full.",
    )
    status.add_argument("model", nargs="?", metavar="MODEL", help="name of a ModelWeights; default: all")
    _add_namespace(status, everywhere=True)
    status.add_argument(
        "-w", "--watch", action="store_true", help="show changes until interrupted; with MODEL until it is ready"
    )
    nodes = _add(
        commands,
        "nodes",
        "nodes: usage, entries, pressure",
        "With NODE: its entries. Needs the right to read nodecaches, which belong to no namespace.",
    )
    nodes.add_argument("node", nargs="?", metavar="NODE", help="name of a node; default: all")
    why = _add(
        commands,
        "why",
        "why a pod waits, has failed or downloaded its weights",
        "Reads the pod, its events, its models and its node's cache, and answers with a reason, one sentence "
        "and the next step. Exits with 1 if something is wrong or waits.",
    )
    why.add_argument(
        "subject",
        metavar="POD",
        help="name of a pod, or of the Deployment, ReplicaSet or Job whose pods "
        "are not created; mw/NAME for a model, node/NAME for a node",
    )
    _add_namespace(why)
    warm = _add(
        commands,
        "warm",
        "load a model onto nodes now",
        "Sets spec.placement.prewarm, and starts what has failed at once. The nodes stay warm from then on.",
    )
    warm.add_argument("model", metavar="MODEL", help="name of a ModelWeights")
    warm.add_argument(
        "--nodes",
        metavar="N|all|NAMES",
        default="",
        help="a number of nodes, all that match, or names "
        "separated by commas; default: as in the object, or all if it prewarms none",
    )
    warm.add_argument("-w", "--watch", action="store_true", help="show the progress until it is warm")
    _add_namespace(warm)
    history = _add(commands, "history", "revisions of a model, and how to go back", "")
    history.add_argument("model", metavar="MODEL", help="name of a ModelWeights")
    _add_namespace(history)
    completion = commands.add_parser(
        "completion",
        help="write the completion script for kubectl",
        description="Writes a script; save it as kubectl_complete-tonnage in a folder of PATH, and make it executable.",
    )
    completion.set_defaults(output="")
    return parser


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, more: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[:1].upper()}{summary[1:]}. {more}".strip())
    parser.add_argument("-o", "--output", choices=("json",), default="", help="JSON in place of text")
    parser.add_argument("--kubeconfig", default="", metavar="FILE", help="default: KUBECONFIG, ~/.kube/config")
    parser.add_argument("--context", default="", metavar="NAME", help="context of the kubeconfig; default: the current")
    return parser


def _add_namespace(parser: argparse.ArgumentParser, *, everywhere: bool = False) -> None:
    parser.add_argument("-n", "--namespace", default="", metavar="NAME", help="default: that of the context")
    if everywhere:
        parser.add_argument("-A", "--all-namespaces", action="store_true", help="all namespaces")
