"""Brings the chart's copies up to date: CRDs from the operator's models, roles from ``operator/rbac``.

A chart can read only what lies within it, so it has copies; nobody edits them, and a test compares them. Run it after a
change of the API's models or of a role: ``python hack/chart/sync.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tonnage"


def generated_files() -> dict[Path, str]:
    """Returns the text that each generated file should have, ``crds/`` included."""
    from tonnage_operator.api import crd

    files: dict[Path, str] = {}
    for name, text in crd.files().items():
        files[ROOT / "crds" / name] = text
        files[CHART / "files" / "crds" / name] = text
    for role in sorted((ROOT / "operator" / "rbac").glob("*.yaml")):
        files[CHART / "files" / "rbac" / role.name] = role.read_text()
    return files


def stale_files() -> list[Path]:
    """Returns the files in the chart that nothing makes any more."""
    return sorted(set((CHART / "files").rglob("*.yaml")) - set(generated_files()))


def main() -> int:
    """Writes what differs, removes what is stale, and names both."""
    sys.path[:0] = [str(ROOT / "operator"), str(ROOT / "loader")]
    for path, text in generated_files().items():
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")
    for path in stale_files():
        path.unlink()
        sys.stdout.write(f"removed {path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
