"""Draws docs/images/architecture.svg, the diagram of the whole system: `python docs/images/architecture.py`."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 980, 590
TARGET = Path(__file__).with_name("architecture.svg")
SANS = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"

LIGHT = {
    "ground": "#ffffff", "zone": "#f6f8fa", "box": "#ffffff", "edge": "#d0d7de", "ink": "#1f2328", "soft": "#59636e",
    "data": "#0969da", "part": "#b6d4f7", "good": "#1a7f37", "line": "#818b98",
}  # fmt: skip
DARK = {
    "ground": "#0d1117", "zone": "#151b23", "box": "#1c2430", "edge": "#3d444d", "ink": "#f0f6fc", "soft": "#9da7b1",
    "data": "#4493f8", "part": "#1f4a80", "good": "#3fb950", "line": "#7d8793",
}  # fmt: skip


def rules(color: dict[str, str]) -> str:
    """Returns the rules that have a color. No variables: not every program that shows pictures knows them."""
    return "\n".join(
        (
            f"text {{ fill: {color['ink']}; }}",
            f".ground {{ fill: {color['ground']}; }}",
            f".zone {{ fill: {color['zone']}; stroke: {color['edge']}; }}",
            f".box {{ fill: {color['box']}; stroke: {color['edge']}; }}",
            f".soft, .small {{ fill: {color['soft']}; }}",
            f".control {{ stroke: {color['line']}; }} .control-tip {{ fill: {color['line']}; }}",
            f".data {{ stroke: {color['data']}; }} .data-tip, .number {{ fill: {color['data']}; }}",
            f".part {{ fill: {color['part']}; }}",
            f".good {{ fill: {color['good']}; }} .digit {{ fill: {color['ground']}; }}",
        )
    )


STYLE = f"""
text {{ font-family: {SANS}; font-size: 13px; }}
.title {{ font-weight: 600; font-size: 15px; }}
.small {{ font-size: 12px; }}
.mono {{ font-family: {MONO}; font-size: 11.5px; }}
.good, .digit {{ font-weight: 600; font-size: 12px; }}
.zone, .box {{ stroke-width: 1.2; }}
.control, .data {{ fill: none; stroke-width: 1.5; }}
.data {{ stroke-width: 2.6; }}
.faint {{ stroke-dasharray: 5 4; }}
{rules(LIGHT)}
@media (prefers-color-scheme: dark) {{
{rules(DARK)}
}}
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Returns a line of text."""
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x}" y="{y}"{style}{end}>{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box", radius: float = 8) -> str:
    """Returns a box with round corners."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" class="{kind}"/>'


def _tip(x: float, y: float, dx: int, dy: int, kind: str) -> str:
    """Returns the tip of an arrow that ends at a point, coming from the direction (dx, dy)."""
    size, half = (11, 5.5) if kind == "data" else (9, 4.5)
    back = (x + dx * size, y + dy * size)
    side = (dy * half, dx * half)
    points = f"{x},{y} {back[0] + side[0]},{back[1] + side[1]} {back[0] - side[0]},{back[1] - side[1]}"
    return f'<polygon class="{kind}-tip" points="{points}"/>'


def across(x1: float, y1: float, x2: float, y2: float, kind: str = "control", more: str = "") -> str:
    """Returns an arrow that leaves and arrives horizontally."""
    way = -1 if x2 > x1 else 1
    end, middle = x2 + way * 7, (x1 + x2) / 2
    path = f"M{x1} {y1} H{end}" if y1 == y2 else f"M{x1} {y1} C{middle} {y1} {middle} {y2} {end} {y2}"
    return f'<path class="{kind}{more}" d="{path}"/>{_tip(x2, y2, way, 0, kind)}'


def down(x: float, y1: float, y2: float, kind: str = "control", more: str = "") -> str:
    """Returns a vertical arrow, upwards where ``y2`` is above."""
    way = -1 if y2 > y1 else 1
    return f'<path class="{kind}{more}" d="M{x} {y1} V{y2 + way * 7}"/>{_tip(x, y2, 0, way, kind)}'


def operator() -> list[str]:
    """What talks to the Kubernetes API."""
    top = 66
    return [
        box(24, 20, 932, 166, "zone", 12),
        text(44, 46, "Operator", "title"),
        text(134, 46, "writes to the Kubernetes API; reads no Secret, opens no bucket, touches no weight", "small"),
        box(44, top, 196, 102),
        text(58, top + 24, "ModelWeights", "title"),
        text(58, top + 46, "s3: models/llama/", "mono"),
        text(58, top + 64, "prewarm: AllMatching", "mono"),
        text(58, top + 86, "Ready, warm on 2/3", "good"),
        across(240, top + 36, 300, top + 36),
        text(268, top + 29, "spec", "small", "middle"),
        across(300, top + 72, 240, top + 72),
        text(271, top + 65, "status", "small", "middle"),
        box(300, top, 170, 102),
        text(385, top + 24, "Controller", "title", "middle"),
        text(385, top + 51, "resolves, warms nodes,", "soft", "middle"),
        text(385, top + 71, "cleans up, reports status", "soft", "middle"),
        across(470, top + 54, 530, top + 54),
        text(498, top + 47, "writes", "small", "middle"),
        box(530, top, 160, 102),
        text(544, top + 24, "NodeCache", "title"),
        text(544, top + 46, "gpu-1  r-3f9c  Ready", "mono"),
        text(544, top + 64, "gpu-2  r-3f9c  Ready", "mono"),
        text(544, top + 82, "gpu-3  r-3f9c  Loading", "mono"),
        across(690, top + 54, 750, top + 54),
        text(718, top + 47, "reads", "small", "middle"),
        box(750, top, 186, 102),
        text(843, top + 24, "Webhook", "title", "middle"),
        text(843, top + 45, "for pods annotated", "soft", "middle"),
        text(843, top + 64, "tonnage.dev/model: llama", "mono", "middle"),
        text(843, top + 84, "and for no others", "soft", "middle"),
    ]


def between() -> list[str]:
    """What passes between the operator and the nodes."""
    return [
        down(340, 168, 288),
        text(330, 222, "Jobs: resolve,", "small", "end"),
        text(330, 238, "load, clean up", "small", "end"),
        down(425, 288, 168, more=" faint"),
        text(435, 230, "reports", "small"),
        down(843, 168, 276),
        text(833, 222, "adds loader, mount,", "small", "end"),
        text(833, 238, "preference for warm nodes", "small", "end"),
    ]


def bucket() -> list[str]:
    """The object store."""
    return [
        '<path class="zone" d="M16 348 v116 a69 15 0 0 0 138 0 v-116"/>',
        '<ellipse class="zone" cx="85" cy="348" rx="69" ry="15"/>',
        text(85, 394, "Object storage", "title", "middle"),
        text(85, 417, "llama.tensors", "mono", "middle"),
        text(85, 435, "config.json", "mono", "middle"),
        text(85, 453, "tokenizer.json", "mono", "middle"),
        across(154, 408, 232, 408, "data"),
        text(180, 398, "ranges", "small", "middle"),
    ]


STEPS = ("resolve, pin the revision", "fetch parts in parallel", "verify every tensor", "publish by one rename")


def loader() -> list[str]:
    """The program that moves the bytes."""
    drawn = [
        box(232, 290, 230, 218),
        text(347, 316, "Loader", "title", "middle"),
        text(347, 335, "a Job, or a pod's init container", "small", "middle"),
    ]
    for place, step in enumerate(STEPS):
        y = 363 + place * 32
        drawn += [
            f'<circle class="number" cx="258" cy="{y - 4.5}" r="10"/>',
            text(258, y, str(place + 1), "digit", "middle"),
            text(277, y, step),
        ]
    return [*drawn, text(347, 494, "never talks to the Kubernetes API", "small", "middle")]


def cache() -> list[str]:
    """The entries of one node."""
    drawn = [
        across(462, 408, 524, 408, "data"),
        box(524, 290, 196, 218),
        text(622, 316, "Cache", "title", "middle"),
        text(622, 335, "shared memory or NVMe", "small", "middle"),
        box(540, 352, 164, 78),
        text(552, 371, "r-3f9c2a71b0de", "mono"),
        text(692, 372, "✓", "good", "end"),
    ]
    drawn += [box(552 + shard * 36, 382, 32, 14, "part", 3) for shard in range(4)]
    return [
        *drawn,
        text(552, 416, "model/*.safetensors", "mono"),
        f'<g class="faint">{box(540, 442, 164, 50)}</g>',
        text(552, 461, "r-77ab10c4e95d", "mono"),
        box(552, 470, 32, 14, "part", 3),
        box(588, 470, 32, 14, "part", 3),
        text(694, 481, "loading", "small", "end"),
    ]


def pods() -> list[str]:
    """The programs that read the cache."""
    drawn = []
    for place, engine in enumerate(("vLLM", "SGLang", "transformers")):
        y = 278 + place * 80
        drawn += [
            across(720, 399, 772, y + 35, "data"),
            box(772, y, 164, 70),
            box(780, y + 10, 48, 50, "zone", 6),
            text(804, y + 40, "loader", "small", "middle"),
            box(834, y + 10, 94, 50, "zone", 6),
            text(881, y + 40, engine, "", "middle"),
        ]
    return drawn


def node() -> list[str]:
    """The frame of a node and what is said below it."""
    return [
        box(206, 256, 750, 314, "zone", 12),
        text(497, 552, "downloaded once for each node", "small", "middle"),
        text(854, 534, "read-only, the same pages,", "small", "middle"),
        text(854, 552, "attached without a download", "small", "middle"),
        text(226, 552, "Node", "title"),
    ]


TITLE = (
    "Loaders on each node fetch weights from object storage, verify them and publish them in the node's cache, which "
    "serving pods mount read-only. The operator's controller starts loaders as Jobs and records what lies where, its "
    "webhook adds a loader and the mount to pods that ask."
)


def document(title: str, width: int, height: int, *parts: list[str]) -> str:
    """Returns the text of an SVG of some parts on the ground."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="what">',
        f'<title id="what">{title}</title>',
        f"<style>{STYLE}</style>",
        box(0, 0, width, height, "ground", 14),
        *(line for part in parts for line in part),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def picture() -> str:
    """Returns the SVG's text."""
    return document(TITLE, WIDTH, HEIGHT, node(), operator(), between(), bucket(), loader(), cache(), pods())


if __name__ == "__main__":
    TARGET.write_text(picture())
