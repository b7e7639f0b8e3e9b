"""No tracked file names a private path or a package registry."""

from __future__ import annotations

import re
from pathlib import Path

from support.markdown import tracked_files
from support.repository import ROOT

PRIVATE = re.compile(
    r"(?<![\w./-])/(?:work|root|home/\w+|Users/\w+)/"
    r"|(?:pypi\.org|pythonhosted\.org|npmjs\.(?:org|com)|proxy\.golang\.org|sum\.golang\.org)"
    r"|--(?:extra-)?index-url[= ]\S"
)


def test_no_tracked_file_names_a_private_path_or_a_registry_of_packages() -> None:
    found = []
    for file in tracked_files():
        if file == Path(__file__):
            continue
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), 1)
        found += [f"{file.relative_to(ROOT)}:{number}" for number, line in lines if PRIVATE.search(line)]
    assert not found


def test_private_names_are_detected() -> None:
    folders = (f"see /{name}/x" for name in ("work", "root", "home/me"))
    registry = "https://python.example/simple".replace("python.example", "pypi" + ".org")
    private = (*folders, registry, "--index-url https://x")
    assert all(PRIVATE.search(text) for text in private)
    harmless = ("/var/lib/tonnage", "network/", "https://example.com/work/x", "no-emit-index-url", "tonnage/root/x")
    assert not any(PRIVATE.search(text) for text in harmless)
