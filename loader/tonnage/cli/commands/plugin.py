"""``tonnage plugin``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import tonnage
from tonnage._version import __version__
from tonnage.cli import output
from tonnage.errors import CacheNotWritable

if TYPE_CHECKING:
    import argparse

    from tonnage.cli.invocation import Invocation

ENTRY_POINTS = (
    "[vllm.general_plugins]\ntonnage = tonnage.vllm_plugin:register\n"
    "[sglang.srt.plugins]\ntonnage = tonnage.sglang_plugin:register\n"
)


def run(arguments: argparse.Namespace, _: Invocation) -> int:
    """Writes the plugin into a folder, for ``PYTHONPATH`` of an engine's container.

    Raises:
        CacheNotWritable: The folder can't be written.
    """
    folder = Path(arguments.directory)
    write_plugin(folder)
    if arguments.json:
        output.write_json({"path": str(folder), "version": __version__})
    else:
        print(f"Wrote the plugin to {folder}. Start vLLM or SGLang with PYTHONPATH={folder} and --load-format tonnage.")
    return 0


def write_plugin(folder: Path) -> None:
    """Copies this package and its metadata into a folder.

    Raises:
        CacheNotWritable: The folder can't be written.
    """
    try:
        shutil.copytree(
            Path(tonnage.__file__).parent,
            folder / "tonnage",
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
        metadata = folder / f"tonnage-{__version__}.dist-info"
        metadata.mkdir(exist_ok=True)
        metadata.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: tonnage\nVersion: {__version__}\n")
        metadata.joinpath("entry_points.txt").write_text(ENTRY_POINTS)
    except (OSError, shutil.Error) as error:
        raise CacheNotWritable(f"The plugin can't be written to {folder}: {error}.") from error
