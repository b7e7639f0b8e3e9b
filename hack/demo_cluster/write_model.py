"""Writes versions of the demo's model: ``python -m demo_cluster.write_model FOLDER VERSION… [--small]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    sys.path.append(str(ROOT / "examples" / "demo"))
    from model import make_model, make_tokenizer, save

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets a folder for each version")
    parser.add_argument("versions", nargs="+", metavar="version")
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    model = make_model(small=arguments.small)
    tokenizer = make_tokenizer((ROOT / name).read_text() for name in ("README.md", "LICENSE"))
    for version in arguments.versions:
        # Versions differ in one weight only.
        next(model.parameters()).data[0, 0] = float(version.removeprefix("v"))
        save(model, tokenizer, arguments.folder / version)


if __name__ == "__main__":
    main()
