"""Compiles the C sources into the wheel. Without a C compiler the wheel has only Python, which works, more slowly.

To compile for a checkout: ``python loader/native/build_hook.py``. The compiler is ``$CC``, otherwise ``cc``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARIES = {
    "copy_ring.c": "tonnage/attach/native/copy_ring.so",
    "crc.c": "tonnage/format/crc.so",
    "receive.c": "tonnage/transfer/receive.so",
}
"""Each source's library in the wheel."""
FLAGS = ("-std=gnu11", "-O2", "-g0", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-pthread")


class CompilationFailed(Exception):
    """There is no compiler, or it failed; the message has its output."""


def compile_library(target: Path, source: str = "copy_ring.c") -> None:
    """Compiles the library of a source.

    Raises:
        CompilationFailed: The message has the compiler's output.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise CompilationFailed(f"{compiler[0]} is not installed")
    done = subprocess.run(
        [*compiler, *FLAGS, "-o", str(target), str(HERE / source)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise CompilationFailed(done.stderr.strip())


def platform_tag() -> str:
    """Returns the wheel's tag: any Python 3, because the library doesn't use Python's C API; this platform only."""
    return f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def add_libraries(folder: Path, build_data: dict[str, Any]) -> None:
    """Compiles all libraries in a folder, and adds them to the wheel.

    Raises:
        CompilationFailed: Nothing was added.
    """
    paths = {str(folder / Path(library).name): library for library in LIBRARIES.values()}
    for source, path in zip(LIBRARIES, paths, strict=True):
        compile_library(Path(path), source)
    build_data["force_include"].update(paths)
    build_data["pure_python"] = False
    build_data["tag"] = platform_tag()


def compile_for_checkout() -> None:
    """Compiles all libraries to where this checkout's packages look for them.

    Raises:
        CompilationFailed: A compiler is missing or failed.
    """
    for source, library in LIBRARIES.items():
        compile_library(HERE.parent / library, source)


def get_build_hook() -> type:
    """Called by hatchling."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]
        """Adds the library to wheels; an editable installation gets it in the checkout."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            self._folder = tempfile.TemporaryDirectory()
            try:
                if version == "editable":
                    compile_for_checkout()
                else:
                    add_libraries(Path(self._folder.name), build_data)
            except CompilationFailed as error:
                self.app.display_warning(f"Building without the compiled parts: {error}")

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
            self._folder.cleanup()

    return NativeBuildHook


if __name__ == "__main__":
    compile_for_checkout()
