"""Generates the chart's CRDs from the operator's models, and copies its roles from ``operator/rbac``.

A chart can read only files in its folder, so it needs copies. Don't edit them: a test compares them. Run
``python hack/chart/sync.py`` after a change of the API's models or of a role.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "tonnage"


def generated_files() -> dict[Path, str]:
    """Returns the content of each generated file, including those in ``crds/``."""
    from tonnage_operator.api import crd

    files: dict[Path, str] = {}
    for name, text in crd.files().items():
        files[ROOT / "crds" / name] = text
        files[CHART / "files" / "crds" / name] = text
    for role in sorted((ROOT / "operator" / "rbac").glob("*.yaml")):
        files[CHART / "files" / "rbac" / role.name] = role.read_text()
    return files


def stale_files() -> list[Path]:
    """Returns the chart's files that are no longer generated."""
    return sorted(set((CHART / "files").rglob("*.yaml")) - set(generated_files()))


def main() -> int:
    """Writes changed files, removes stale files, and prints their paths."""
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
