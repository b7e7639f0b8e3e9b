"""Has something go wrong in a fan-out over shaped links, and shows that nodes get the right bytes, and when.

Run by ``fan_out.py --faults``. Each fault is one run with all nodes loading at the same time.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from network import network
from scene import KEY, Scene

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

OTHER_KEY = "other.tensors"


class Fault(NamedTuple):
    """What goes wrong.

    Attributes:
        what: A sentence's end for the table.
        before: Called before the loads, with the names of all nodes; returns those that load.
        during: Called when all nodes that load have a third of the model.
        lost: Nodes whose load can't end.
    """

    what: str
    before: Callable[[Scene, list[str]], list[str]]
    during: Callable[[Scene], None] | None = None
    lost: tuple[str, ...] = ()


def _start(scene: Scene, names: list[str]) -> list[str]:
    scene.start_peers(names)
    return names


def _full(scene: Scene, names: list[str]) -> list[str]:
    scene.start_peers(names, "--connections", "2")
    return names


def _holder(scene: Scene, names: list[str], key: str) -> Path:
    """Has the first node load an object, and returns its entry."""
    scene.start_peers(names)
    loads = scene.load(names[:1], scene.plan(with_peers=True, key=key))
    if loads.reports[names[0]]["outcome"] != "loaded":
        raise RuntimeError(str(loads.reports))
    return scene.entry(names[0])


def _lying(scene: Scene, names: list[str]) -> list[str]:
    """One node has the entry, with a flipped bit in each 4 MB."""
    for path in _holder(scene, names, KEY).rglob("*.safetensors"):
        path.chmod(0o644)
        with path.open("r+b") as file:
            for at in range(2_000_000, path.stat().st_size, 4_000_000):
                file.seek(at)
                byte = file.read(1)
                file.seek(at)
                file.write(bytes([byte[0] ^ 1]))
    return names[1:]


def _old_revision(scene: Scene, names: list[str]) -> list[str]:
    """One node has another revision under the entry's name."""
    old = _holder(scene, names, OTHER_KEY)
    found = scene.load(names[1:2], scene.plan(with_peers=True))
    name = found.reports[names[1]]["entry"]
    shutil.rmtree(scene.cache(names[1]) / name)
    old.rename(old.with_name(name))
    return names[1:]


def _denied(scene: Scene, names: list[str]) -> list[str]:
    """The controller signs with a key that the peers don't know, so no load gets a pass."""
    scene.start_peers(names)
    (scene.secrets / "signing-key").write_bytes(os.urandom(32))
    return names


def _kill(scene: Scene) -> None:
    for name in ("node0", "node1"):
        scene.kill_peer(name)


FAULTS = {
    "killed": Fault("the peers of two nodes are killed", _start, _kill),
    "cut off": Fault("a node's link is cut", _start, lambda scene: scene.network.cut("node0"), ("node0",)),
    "slow": Fault("a node's link has a fiftieth of the rate", _start, None, ("node0",)),
    "full": Fault("each peer takes two connections", _full),
    "lying": Fault("a node has the entry with flipped bits", _lying),
    "old revision": Fault("a node has another revision under this name", _old_revision),
    "no permission": Fault("no peer accepts the tickets", _denied),
}


def run_faults(folder: Path, options: argparse.Namespace, names: list[str]) -> list[dict[str, Any]]:
    """Runs each fault once, and returns a row for each."""
    size = (folder / "bucket" / KEY).stat().st_size
    limit = size * 8 / (options.rate * 1e6)
    rows = []
    for name, fault in FAULTS.items():
        if options.faults != ["all"] and name not in options.faults:
            continue
        work = Path(tempfile.mkdtemp(dir=folder))
        with (
            network(["controller", "bucket", *names], f"{options.rate}mbit") as links,
            Scene(work, folder / "bucket", links) as scene,
        ):
            scene.start_controller()
            loading = fault.before(scene, list(names))
            if name == "slow":
                links.slow_down("node0", f"{options.rate / 50}mbit")
            before = links.hosts["bucket"].sent_bytes()
            during = fault.during
            event = None if during is None else lambda act=during, on=scene: act(on)
            loads = scene.load(loading, scene.plan(with_peers=True), event=event, lost=fault.lost)
            sent = links.hosts["bucket"].sent_bytes() - before
            ended = [each for each in loading if each not in fault.lost]
            right = len(scene.digests(ended)) == 1
        shutil.rmtree(work)
        reports = [loads.reports[each] for each in ended]
        row = {
            "fault": name,
            "what": fault.what,
            "nodes": len(ended),
            "right_bytes": right and all(report["outcome"] == "loaded" for report in reports),
            "seconds": round(max(loads.seconds[each] for each in ended), 1),
            "times_the_limit": round(max(loads.seconds[each] for each in ended) / limit, 2),
            "bucket_models": round(sent / size, 2),
            "dropped": sorted(
                {f"{each['node']}: {each['reason']}" for report in reports for each in report["dropped_peers"]}
            ),
        }
        print(row, file=sys.stderr)
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the table in Markdown."""
    lines = [
        "| fault | nodes that ended | bytes | all had the model after | the bucket sent | dropped |",
        "|---|---:|---|---:|---:|---|",
    ]
    for row in rows:
        dropped = ", ".join(row["dropped"]) or "none"
        lines.append(
            f"| {row['fault']}: {row['what']} | {row['nodes']} | {'right' if row['right_bytes'] else 'wrong'} | "
            f"{row['seconds']} s, {row['times_the_limit']} × the limit | {row['bucket_models']} models | {dropped} |"
        )
    return "\n".join(lines) + "\n"
