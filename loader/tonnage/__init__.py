"""Tonnage loads model weights from object storage into a verified cache on this machine.

>>> import tonnage
>>> report = tonnage.load("s3://models/llama/", cache="/dev/shm/tonnage")  # doctest: +SKIP
>>> weights = tonnage.open(report.path)  # doctest: +SKIP

Importing this package imports almost nothing: each function imports its modules on first use, and only ``open`` imports
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage._version import __version__

if TYPE_CHECKING:
    from tonnage.attach import open_weights as open  # noqa: A004
    from tonnage.errors import TonnageError
    from tonnage.loading import load, resolve

__all__ = ["TonnageError", "__version__", "load", "open", "resolve"]

_LAZY_ATTRIBUTES = {
    "TonnageError": ("tonnage.errors", "TonnageError"),
    "load": ("tonnage.loading", "load"),
    "open": ("tonnage.attach", "open_weights"),
    "resolve": ("tonnage.loading", "resolve"),
}


def __getattr__(name: str) -> object:
    if name not in _LAZY_ATTRIBUTES:
        raise AttributeError(f"module 'tonnage' has no attribute {name!r}")
    import importlib  # here, because the command line does not need it

    module, attribute = _LAZY_ATTRIBUTES[name]
    return getattr(importlib.import_module(module), attribute)
