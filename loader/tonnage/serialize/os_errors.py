"""Errors of files that are written, as errors that name what failed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from tonnage.cache.filesystem import translate_os_errors
from tonnage.contract.sizes import human_bytes
from tonnage.errors import InsufficientSpace, TargetNotWritable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

_SPACE_REMEDY = "Free space, or pass a folder of another disk with --scratch; --file-size makes smaller files."


def translate_target_errors(action: str) -> AbstractContextManager[None]:
    """Returns a context that translates an ``OSError``.

    Args:
        action: The failed action, as the beginning of a sentence: "/x can't be written".

    Raises:
        InsufficientSpace: The disk or a quota is full.
        TargetNotWritable: Any other error.
    """
    return translate_os_errors(action, otherwise=TargetNotWritable, space_remedy=_SPACE_REMEDY)


def check_space(folder: Path, size: int) -> None:
    """Checks that a folder's file system has room for ``size`` bytes.

    Raises:
        InsufficientSpace: It has less.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        message = f"{folder} has {human_bytes(free)} free, and the files need {human_bytes(size)}."
        raise InsufficientSpace(message, remedy=_SPACE_REMEDY)
