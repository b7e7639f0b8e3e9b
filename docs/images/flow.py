"""Draws flow.svg, the diagram of the architecture page: `python docs/images/flow.py`."""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 980, 384
LANES = 4
LANE_TOP, LANE_STEP = 92, 62
FONT = "ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

# One drawing for light and dark pages: it has its own ground, and its colors follow the reader's scheme.
STYLE = f"""
    svg {{ --ground: #ffffff; --edge: #d0d7de; --box: #f6f8fa; --ink: #1f2328; --soft: #59636e;
          --part: #0969da; --good: #1a7f37; --warm: #bc4c00; }}
    @media (prefers-color-scheme: dark) {{
      svg {{ --ground: #0d1117; --edge: #3d444d; --box: #151b23; --ink: #f0f6fc; --soft: #9198a1;
            --part: #4493f8; --good: #3fb950; --warm: #f0883e; }}
    }}
    text {{ font-family: {FONT}; fill: var(--ink); font-size: 13px; }}
    .title {{ font-weight: 600; font-size: 14px; }}
    .soft {{ fill: var(--soft); font-size: 12px; }}
    .mono {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 11px; }}
    .box {{ fill: var(--box); stroke: var(--edge); stroke-width: 1.2; }}
    .line {{ fill: none; stroke: var(--edge); stroke-width: 1.4; }}
    .tip {{ fill: var(--edge); }}
    .good {{ fill: var(--good); font-weight: 600; }}
"""


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """Returns a line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{words}</text>'


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """Returns a box with round corners."""
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="7" class="{kind}"/>'


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """Returns a curve with a tip at its end."""
    middle = (x1 + x2) / 2
    curve = f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2 - 6} {y2}"
    tip = f"{x2},{y2} {x2 - 8},{y2 - 4} {x2 - 8},{y2 + 4}"
    return f'<path class="line" d="{curve}"/><polygon class="tip" points="{tip}"/>'


def bucket() -> list[str]:
    """The object store."""
    side = "M28 132 v124 a56 13 0 0 0 112 0 v-124"
    return [
        f'<path class="box" d="{side}"/><ellipse class="box" cx="84" cy="132" rx="56" ry="13"/>',
        text(84, 182, "S3 bucket", "title"),
        text(84, 206, "llama.tensors", "mono"),
        text(84, 224, "config.json", "mono"),
        text(84, 302, "one pinned revision", "soft"),
    ]


def lanes() -> list[str]:
    """The workers: parts come in, are verified, and go to a segment's file."""
    drawn = [
        text(262, 56, "parts of 16 MiB", "title"),
        text(448, 56, "verified on arrival", "title"),
        text(684, 56, "cache in memory or on NVMe", "title"),
        box(556, 72, 256, 272),
        text(684, 332, "valid safetensors, tensor data aligned", "soft"),
    ]
    for lane in range(LANES):
        y = LANE_TOP + lane * LANE_STEP
        middle = y + 17
        drawn.append(arrow(144, 194, 192, middle))
        for part in range(7):
            shade = 0.35 + 0.1 * ((part * 3 + lane * 2) % 7)
            drawn.append(
                f'<rect x="{200 + part * 18}" y="{y + 6}" width="14" height="22" rx="3" '
                f'fill="var(--part)" fill-opacity="{shade:.2f}"/>'
            )
        drawn += [
            arrow(330, middle, 374, middle),
            box(376, y, 142, 34),
            text(390, middle + 4.5, f"worker {lane + 1}", "soft", "start"),
            text(506, middle + 4.5, "CRC ✓", "good", "end"),
            arrow(520, middle, 566, middle),
            box(568, y, 232, 34),
            text(684, middle + 4, f"model-0000{lane + 1}-of-00004.safetensors", "mono"),
        ]
    return [*drawn, text(448, 366, "one process a core, one file each", "soft")]


def readers() -> list[str]:
    """The programs that read the cache."""
    drawn = [text(898, 56, "any engine", "title")]
    for place, name in enumerate(("vLLM", "SGLang", "transformers")):
        y = 108 + place * 74
        drawn += [arrow(814, 200, 842, y + 22), box(844, y, 108, 44), text(898, y + 27, name)]
    return [*drawn, text(898, 366, "read-only, shared", "soft"), text(684, 366, "downloaded once a machine", "soft")]


TITLE = (
    "Parts of an object in a bucket pass several workers, which verify them and write one file each into a cache that "
    "all engines of the machine read."
)


def main() -> None:
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="what">',
        f'<title id="what">{TITLE}</title>',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" style="fill: var(--ground)"/>',
        *bucket(),
        *lanes(),
        *readers(),
        "</svg>",
    ]
    Path(__file__).with_name("flow.svg").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
