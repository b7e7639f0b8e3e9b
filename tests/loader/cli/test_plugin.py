"""``tonnage plugin``: the package and its metadata in a folder for an engine's container."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import distributions
from typing import TYPE_CHECKING

from support.tonnage_cli import run_tonnage
from tonnage._version import __version__
from tonnage.cli.commands.plugin import ENTRY_POINTS

if TYPE_CHECKING:
    from pathlib import Path


def test_the_folder_is_a_distribution_with_the_entry_point(tmp_path: Path) -> None:
    assert json.loads(run_tonnage("plugin", str(tmp_path / "new"), "--json").stdout)["version"] == __version__
    [found] = list(distributions(path=[str(tmp_path / "new")]))
    assert (found.name, found.version) == ("tonnage", __version__)
    assert {(point.group, point.name, point.value) for point in found.entry_points} == {
        ("vllm.general_plugins", "tonnage", "tonnage.vllm_plugin:register"),
        ("sglang.srt.plugins", "tonnage", "tonnage.sglang_plugin:register"),
    }


def test_the_copy_imports_without_any_dependency_of_the_loader(tmp_path: Path) -> None:
    run_tonnage("plugin", str(tmp_path))
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "for name in ('pycurl', 'botocore', 'isal', 'rich'): sys.modules[name] = None\n"
        "import tonnage.vllm_plugin.checkpoint, tonnage.sglang_plugin, tonnage.attach.weights; print(tonnage.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.startswith(str(tmp_path)), done.stderr


def test_a_second_release_replaces_the_first(tmp_path: Path) -> None:
    run_tonnage("plugin", str(tmp_path))
    (tmp_path / "tonnage/_version.py").write_text("old")
    run_tonnage("plugin", str(tmp_path))
    assert __version__ in (tmp_path / "tonnage/_version.py").read_text()


def test_a_folder_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_tonnage("plugin", str(tmp_path / "file" / "sub"))
    assert done.returncode == 28
    assert str(tmp_path / "file" / "sub") in done.stderr


def test_the_entry_point_is_that_of_the_package() -> None:
    import tomllib

    from support.repository import ROOT

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert (
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
            for group, points in declared.items()
        )
        == ENTRY_POINTS
    )
