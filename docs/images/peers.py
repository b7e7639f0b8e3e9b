"""Draws docs/images/peers.svg, how bytes flow in a fan-out: `python docs/images/peers.py`."""

from __future__ import annotations

import runpy
from pathlib import Path

TARGET = Path(__file__).with_name("peers.svg")
SHARED = runpy.run_path(str(TARGET.with_name("architecture.py")), run_name="architecture")
text, box, across, down, document = (SHARED[name] for name in ("text", "box", "across", "down", "document"))

WIDTH, HEIGHT = 980, 516
PARTS = 8
NODES = (
    ("node-a", "has 1 to 3", (0, 1, 2)),
    ("node-b", "has 4 to 6", (3, 4, 5)),
    ("node-c", "has all", tuple(range(PARTS))),
)
TOP, STEP, TALL = 116, 122, 100


def bucket() -> list[str]:
    """The object store, and the part that it sends to each node."""
    drawn = [
        '<path class="zone" d="M24 224 v116 a69 15 0 0 0 138 0 v-116"/>',
        '<ellipse class="zone" cx="93" cy="224" rx="69" ry="15"/>',
        text(93, 272, "Object storage", "title", "middle"),
        text(93, 296, "each part once,", "small", "middle"),
        text(93, 314, "headers to all nodes", "small", "middle"),
    ]
    for place, label in enumerate(("parts 1–3", "parts 4–6")):
        y = TOP + place * STEP + 40
        drawn += [across(162, 262 + place * 30, 262, y, "data")]
        drawn += [text(206, y - 8, label, "small", "end")]
    return drawn


def node(place: int) -> list[str]:
    """A node: its loader, its entry, and its peer."""
    name, has, parts = NODES[place]
    y = TOP + place * STEP
    drawn = [
        box(236, y - 6, 560, TALL + 12, "zone", 12),
        text(250, y + 14, name, "title"),
        box(264, y + 26, 112, 52),
        text(320, y + 57, "Loader", "title", "middle"),
        across(376, y + 52, 424, y + 52, "data"),
        box(426, y + 12, 198, 78),
        text(438, y + 34, "cache entry", ""),
        text(612, y + 34, has, "small", "end"),
        across(624, y + 52, 668, y + 52, "data"),
        box(670, y + 26, 112, 52),
        text(726, y + 50, "Peer", "title", "middle"),
        text(726, y + 68, "nginx", "small", "middle"),
    ]
    for part in range(PARTS):
        x = 438 + part * 22
        drawn.append(box(x, y + 50, 18, 26, "part" if part in parts else "zone", 3))
        drawn.append(text(x + 9, y + 68, str(part + 1), "small", "middle"))
    return drawn


def exchange() -> list[str]:
    """What peers send to the loaders of other nodes, around the right side."""
    drawn = []
    for place in range(3):
        y = TOP + place * STEP + 52
        drawn.append(f'<path class="data" d="M782 {y} H838"/>')
    top, end = TOP + 52, TOP + 2 * STEP + 52
    drawn.append(f'<path class="data" d="M838 {top} V{end}"/>')
    drawn.append(f'<path class="data" d="M838 {end} V480 H212 V{TOP + 66}"/>')
    drawn += [across(212, TOP + place * STEP + 66, 262, TOP + place * STEP + 66, "data") for place in range(3)]
    drawn += [
        text(852, top + STEP - 12, "ranges over TLS,", "small"),
        text(852, top + STEP + 6, "to the loaders of", "small"),
        text(852, top + STEP + 24, "other nodes", "small"),
        text(525, 500, "the rarest parts first; believed by hashes that no peer has sent", "small", "middle"),
    ]
    return drawn


def controller() -> list[str]:
    """Who names peers."""
    return [
        box(236, 20, 560, 62),
        text(254, 46, "Controller", "title"),
        text(254, 67, "names up to eight peers and signs a ticket for one entry, as the answer to a report", "small"),
        down(320, 140, 84, more=" faint"),
        text(330, 103, "who has it?", "small"),
    ]


TITLE = (
    "The bucket sends each part of a model to one node or two. Each node's peer serves what its loader has verified to "
    "the loaders of other nodes. The controller names peers to loaders and signs their tickets."
)


def picture() -> str:
    """Returns the SVG's text."""
    nodes = (node(place) for place in range(len(NODES)))
    drawn: str = document(TITLE, WIDTH, HEIGHT, *nodes, bucket(), exchange(), controller())
    return drawn


if __name__ == "__main__":
    TARGET.write_text(picture())
