"""Which objects belong to a model, what they are, and what they are called below its prefix. Pure."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal, NamedTuple

from tonnage.errors import InvalidPlan, NameCollision, NoTensorFiles, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage.contract import FileSelection, RankSelection

Kind = Literal["tensors", "companion"]

TENSORS_SUFFIX = ".tensors"
SAFETENSORS_INDEX = "*.safetensors.index.json"
"""Indexes of safetensors shards at the source: they describe other files than the ones the cache will hold."""
DEFAULT_RANKS = re.compile(r"model-rank-(\d{3,})\.tensors")
NAME_MAX = 255
"""Bytes of one file's name, on every file system that a cache may lie on."""


class SelectedObject(NamedTuple):
    """One object of the model: its key at the source, its path below the prefix, and what it is."""

    key: str
    path: str
    kind: Kind
    rank: int | None


class Selection(NamedTuple):
    """All that was selected, in the order of paths, and remarks about what was not."""

    objects: tuple[SelectedObject, ...]
    notes: tuple[str, ...]


def classify_path(path: str, files: FileSelection, *, explicit: bool = False) -> Kind | None:
    """Returns what a file is, None when it doesn't count.

    Args:
        path: The key below the prefix.
        files: The patterns; each is matched against the whole path and against its last part.
        explicit: The key was named, so it needs no pattern to be a companion.
    """
    if _matches(path, files.exclude):
        return None
    if path.endswith(TENSORS_SUFFIX):
        return "tensors" if _matches(path, files.tensors) else None
    return "companion" if explicit or _matches(path, files.companions) else None


def select(
    keys: Iterable[tuple[str, str]],
    files: FileSelection,
    *,
    where: str,
    explicit: bool = False,
    need_tensors: bool = True,
) -> Selection:
    """Selects a model's files.

    Args:
        keys: Pairs of the key and its path below the prefix, all that are there.
        files: Patterns and ranks.
        where: What the source is called in messages.
        explicit: The keys were named one by one.
        need_tensors: Refuse a source without tensor files.

    Raises:
        NoTensorFiles: None of the files counts as a tensor file.
        ObjectNotFound: Ranks are missing that must be there; the message names them.
        NameCollision: A path can't be a file's, or two files want one place.
        InvalidPlan: The pattern of ranks is none.
    """
    notes: list[str] = []
    chosen: list[tuple[str, str, Kind]] = []
    seen = 0
    for key, path in keys:
        seen += 1
        kind = classify_path(path, files, explicit=explicit)
        if kind is None:
            continue
        if kind == "companion" and fnmatchcase(path.rpartition("/")[2], SAFETENSORS_INDEX):
            notes.append(f"{path} was left out: it describes other files than the ones in the cache.")
            continue
        check_path(path, where=where)
        chosen.append((key, path, kind))
    if need_tensors and not any(kind == "tensors" for _, _, kind in chosen):
        raise NoTensorFiles(f"{where}: none of the {seen} objects here is a {TENSORS_SUFFIX} file that counts.")
    chosen.sort(key=lambda each: each[1])
    check_path_conflicts((path for _, path, _ in chosen), where=where)
    ranks = _ranks([path for _, path, kind in chosen if kind == "tensors"], files.ranks, where=where, notes=notes)
    objects = [SelectedObject(key, path, kind, ranks.get(path)) for key, path, kind in chosen]
    if files.ranks is not None and files.ranks.count is not None:
        count = files.ranks.count
        surplus = [each.path for each in objects if each.rank is not None and each.rank >= count]
        if surplus:
            notes.append(f"{', '.join(surplus)} left out: the model has {count} ranks, numbered from 0.")
            objects = [each for each in objects if each.path not in surplus]
    return Selection(tuple(objects), tuple(notes))


def filter_ranks(
    objects: Sequence[SelectedObject], ranks: RankSelection | None, *, where: str
) -> tuple[SelectedObject, ...]:
    """Returns those of the selected objects that this load is for: all, or companions and the wanted ranks.

    Raises:
        ObjectNotFound: A wanted rank is not there, in a source that has tensor files.
    """
    if ranks is None or ranks.wanted is None:
        return tuple(objects)
    available = {each.rank for each in objects}
    missing = [rank for rank in ranks.wanted if rank not in available]
    if missing and any(each.kind == "tensors" for each in objects):
        raise ObjectNotFound(
            f"{where}: there is no file of {_rank_list(missing)}, which {_is_or_are(missing)} asked for."
        )
    return tuple(each for each in objects if each.rank is None or each.rank in ranks.wanted)


def check_path(path: str, *, where: str) -> None:
    """Refuses a path that can't be a file's below the cache's directory.

    Raises:
        NameCollision: It is absolute or has a part that is empty, ``.``, ``..``, too long or has a NUL.
    """
    for part in path.split("/"):
        if part in {"", ".", ".."} or "\x00" in part or len(part.encode()) > NAME_MAX:
            shown = path if len(path) <= 200 else path[:200] + "…"
            raise NameCollision(f"{where}: the key {shown!r} can't be a file's name in the cache.")


def check_path_conflicts(paths: Iterable[str], *, where: str) -> None:
    """Refuses two files of one path, and a file where another's directory must be.

    Raises:
        NameCollision: There are such; the message names both.
    """
    files: set[str] = set()
    for path in paths:
        if path in files:
            raise NameCollision(f"{where}: two objects would be the file {path!r} in the cache.")
        files.add(path)
    for path in sorted(files):
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise NameCollision(f"{where}: {parent!r} would be a file and, for {path!r}, a directory in the cache.")
            parent = parent.rpartition("/")[0]


def rank_pattern(pattern: str) -> re.Pattern[str]:
    """Returns what matches the names that a printf pattern with one integer field makes; group 1 is the number.

    Raises:
        InvalidPlan: It has not just one integer field.
    """
    literal = r"((?:[^%]|%%)*)"
    match = re.fullmatch(literal + r"%(0?)(\d{0,3})[di]" + literal, pattern, re.DOTALL)
    if match is None:
        raise InvalidPlan(f"The pattern of ranks {pattern!r} must have one integer field such as %03d.")
    before, zero, width, after = match.groups()
    digits = rf"\d{{{width},}}" if zero and width else r"\d+"
    return re.compile(f"{re.escape(before.replace('%%', '%'))}({digits}){re.escape(after.replace('%%', '%'))}")


def common_directory(keys: Sequence[str]) -> str:
    """Returns the longest directory that all keys lie in, with its trailing slash; empty for the top."""
    directories = [key.split("/")[:-1] for key in keys]
    shared = []
    for parts in zip(*directories, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join([*shared, ""]) if shared else ""


def _matches(path: str, patterns: Sequence[str]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path, pattern) or fnmatchcase(name, pattern) for pattern in patterns)


def _ranks(paths: Sequence[str], ranks: RankSelection | None, *, where: str, notes: list[str]) -> dict[str, int]:
    """The rank of each file that has one."""
    if not paths:
        return {}
    pattern = DEFAULT_RANKS if ranks is None else rank_pattern(ranks.pattern)
    found: dict[int, str] = {}
    for path in paths:
        match = pattern.fullmatch(path.rpartition("/")[2])
        if match is None:
            continue
        rank = int(match[1])
        if rank in found:
            raise NameCollision(f"{where}: {found[rank]!r} and {path!r} are both rank {rank}.")
        found[rank] = path
    if ranks is not None:
        missing = [rank for rank in range(ranks.count or 0) if rank not in found]
        if missing:
            raise ObjectNotFound(
                f"{where}: {_rank_list(missing)} of {ranks.count} {_is_or_are(missing)} not there (named "
                f"{ranks.pattern})."
            )
        if not found:
            raise ObjectNotFound(f"{where}: no file is named as ranks are, {ranks.pattern}.")
    elif found:
        gaps = [rank for rank in range(max(found)) if rank not in found] if max(found) < 10_000 else []
        if gaps:
            notes.append(f"{_rank_list(gaps)} {_is_or_are(gaps)} not at the source, but higher ones are.")
    return {path: rank for rank, path in found.items()}


def _rank_list(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:20])) + (", …" if len(ranks) > 20 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"


def _is_or_are(ranks: Sequence[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
