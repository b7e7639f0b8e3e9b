"""Errors of files that are written, as errors that name what failed."""

from __future__ import annotations

import contextlib
import errno
import shutil
from typing import TYPE_CHECKING

from tonnage.contract.sizes import human_bytes
from tonnage.errors import InsufficientSpace, TargetNotWritable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SPACE_REMEDY = "Free space, or pass a folder of another disk with --scratch; --file-size makes smaller files."


@contextlib.contextmanager
def translate_target_errors(action: str) -> Iterator[None]:
    """Translates an ``OSError``.

    Args:
        action: The failed action, as the beginning of a sentence: "/x can't be written".

    Raises:
        InsufficientSpace: The disk or a quota is full.
        TargetNotWritable: Any other error.
    """
    try:
        yield
    except OSError as error:
        message = f"{action}: {error.strerror or error}."
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise InsufficientSpace(message, remedy=_SPACE_REMEDY) from error
        raise TargetNotWritable(message) from error


def check_space(folder: Path, size: int) -> None:
    """Checks that a folder's file system has room for ``size`` bytes.

    Raises:
        InsufficientSpace: It has less.
    """
    free = shutil.disk_usage(folder).free
    if free < size:
        message = f"{folder} has {human_bytes(free)} free, and the files need {human_bytes(size)}."
        raise InsufficientSpace(message, remedy=_SPACE_REMEDY)
