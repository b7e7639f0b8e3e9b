"""Selects the objects of a model: tensor files and companions, with their paths and ranks. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tonnage.contract.plan import RankSelection, Weights
from tonnage.contract.selection import (
    RESERVED,
    SAFETENSORS_SUFFIX,
    TENSORS_SUFFIX,
    UNFINISHED,
    choose_weights,
    classify_path,
    matches,
    rank_expression,
    rank_pattern,
)
from tonnage.errors import InvalidPlan, NameCollision, NoTensorFiles, ObjectNotFound, escape_unprintable
from tonnage.source.checkpoint_files import find_indexes, find_models_below, find_surplus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tonnage.contract import FileSelection, ObjectPin
    from tonnage.contract.selection import Kind

SAFETENSORS_INDEXES = ("*.safetensors.index.json", "*.safetensors.index.*.json")
"""Index files of safetensors shards at the source. They describe other files than those in the cache."""
CODE_SUFFIXES = (".py", ".tiktoken", ".spm", ".vocab", ".bpe")
"""Endings of files that a model's code or its tokenizer may need, and that no default pattern matches."""
_TORCH_SAVE = (
    "Files of torch.save could run any code. Copy them to a machine and run `tonnage serialize FOLDER TARGET`, or with "
    "a file in place of the folder: it takes only tensors from them. Or save the model as safetensors."
)
OTHER_FORMATS = (
    ((SAFETENSORS_SUFFIX, TENSORS_SUFFIX), "Write the endings in lower case: others don't count, as for engines."),
    ((".bin", ".pt", ".pth", ".ckpt"), _TORCH_SAVE),
    ((".gguf",), "GGUF files are not loaded: upload the safetensors files that they were made from."),
    ((".h5", ".msgpack", ".onnx", ".npz", ".zip", ".tar", ".gz"), "Save the model as safetensors, and upload that."),
)
"""Endings of weights that are not loaded, and what to do about them."""
_UNFINISHED_REMEDY = "Wait until it has; if it was interrupted, run it again with --overwrite."
NAME_MAX = 255
"""Maximum length of a file's name in bytes, on the file systems of a cache."""


class SelectedObject(NamedTuple):
    """An object of the model: its key, its path below the prefix, its kind and its rank."""

    key: str
    path: str
    kind: Kind
    rank: int | None


class Selection(NamedTuple):
    """The selected objects, sorted by path, and remarks about objects that were left out.

    ``indexes`` are those objects that list the safetensors files of their folder that belong to the model.
    """

    objects: tuple[SelectedObject, ...]
    notes: tuple[str, ...]
    indexes: tuple[SelectedObject, ...] = ()


def select(
    keys: Iterable[tuple[str, str]],
    files: FileSelection,
    *,
    where: str,
    explicit: bool = False,
    need_tensors: bool = True,
    listed: Collection[str] = (),
) -> Selection:
    """Selects a model's files.

    Args:
        keys: All objects of the source, as pairs of key and path below the prefix.
        files: Patterns and ranks.
        where: The source's name in messages.
        explicit: The source names the keys.
        need_tensors: Whether a source without tensor files is an error.
        listed: Paths of files that are the model whatever their names are: an index lists them, or a plan pins them.

    Raises:
        NoTensorFiles: No file matches as a tensor file.
        ObjectNotFound: Ranks are missing, and the message lists them; or the source is not finished.
        NameCollision: A path can't be the name of a file, or two files have the same path or the same rank.
        InvalidPlan: The pattern of ranks is not valid.
    """
    notes: list[str] = []
    left_out: list[str] = []
    chosen: list[tuple[str, str, Kind]] = []
    keys = list(keys)
    _check_finished((path for _, path in keys), where=where)
    weights = choose_weights((path for _, path in keys), files)
    for key, path in keys:
        kind = classify_path(path, files, explicit=explicit, weights=weights)
        if kind is None:
            if not matches(path, files.exclude):
                left_out.append(path)
            continue
        if kind == "companion" and weights is Weights.TENSORIZER and matches(path, SAFETENSORS_INDEXES):
            notes.append(f"{path} was left out: it describes other files than those in the cache.")
            continue
        check_path(path, where=where)
        chosen.append((key, path, kind))
    if need_tensors and not any(kind == "tensors" for _, _, kind in chosen):
        message = f"{where}: none of the {len(keys)} objects is a matching {_suffixes(files)} file."
        raise _no_tensor_files(message, sorted(left_out))
    if weights is Weights.SAFETENSORS:
        surplus = find_surplus({path: kind for _, path, kind in chosen}, listed)
        notes += surplus.notes
        chosen = [each for each in chosen if each[1] not in surplus.paths]
    notes += _models_notes({path: kind for _, path, kind in chosen})
    if left_out:
        notes.append(_left_out_note(sorted(left_out), weights))
    chosen.sort(key=lambda each: each[1])
    check_path_conflicts((path for _, path, _ in chosen), where=where)
    paths = [path for _, path, kind in chosen if kind == "tensors"]
    ranks = _ranks(paths, files.ranks, weights=weights, where=where, notes=notes)
    objects = [SelectedObject(key, path, kind, ranks.get(path)) for key, path, kind in chosen]
    if files.ranks is not None and files.ranks.count is not None:
        count = files.ranks.count
        above = [each.path for each in objects if each.rank is not None and each.rank >= count]
        if above:
            notes.append(f"{', '.join(above)} left out: the model has {count} ranks, numbered from 0.")
            objects = [each for each in objects if each.path not in above]
    indexes = find_indexes(each.path for each in objects) if weights is Weights.SAFETENSORS else frozenset()
    return Selection(tuple(objects), tuple(notes), tuple(each for each in objects if each.path in indexes))


def _no_tensor_files(message: str, left_out: Sequence[str]) -> NoTensorFiles:
    """Returns the error, with the way to load weights of the formats that are there instead."""
    others = [path for path in left_out if not path.endswith((SAFETENSORS_SUFFIX, TENSORS_SUFFIX))]
    found = {way: [path for path in others if path.lower().endswith(endings)] for endings, way in OTHER_FORMATS}
    way, paths = next(((way, paths) for way, paths in found.items() if paths), ("", []))
    if not paths:
        return NoTensorFiles(message)
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return NoTensorFiles(f"{message} There is {escape_unprintable(paths[0])[:200]}{more}.", remedy=way)


def _check_finished(paths: Iterable[str], *, where: str) -> None:
    if UNFINISHED in paths:
        raise ObjectNotFound(f"{where}: tonnage serialize has not finished this model.", remedy=_UNFINISHED_REMEDY)


def check_pins_selected(pins: Iterable[ObjectPin], selection: Selection, *, where: str) -> None:
    """Checks that a plan selects all objects that it pins: those of an entry are what its pins list.

    An object that the selection left out would be in the entry, if another plan has loaded it, though the store was not
    asked whether this identity may read it.

    Raises:
        InvalidPlan: It does not.
    """
    selected = {each.key for each in selection.objects}
    for pin in pins:
        if pin.key not in selected:
            raise InvalidPlan(f"{where}: the plan pins {pin.key!r}, but its patterns leave it out.")


def filter_ranks(
    objects: Sequence[SelectedObject], ranks: RankSelection | None, *, where: str
) -> tuple[SelectedObject, ...]:
    """Returns the objects to load: all, or only the requested ranks and the files that belong to all ranks.

    Raises:
        ObjectNotFound: A requested rank is missing in a source that has tensor files.
    """
    if ranks is None or ranks.wanted is None:
        return tuple(objects)
    available = {each.rank for each in objects}
    missing = [rank for rank in ranks.wanted if rank not in available]
    if missing and any(each.kind == "tensors" for each in objects):
        raise ObjectNotFound(f"{where}: there is no file for the requested {_rank_list(missing)}.")
    return tuple(each for each in objects if each.rank is None or each.rank in ranks.wanted)


def check_path(path: str, *, where: str) -> None:
    """Checks that a path can be a file below the cache's directory.

    Raises:
        NameCollision: The path is absolute, or has a part that is empty, ``.``, ``..`` or too long, contains NUL, or
            begins with ``.tonnage``.
    """
    for part in path.split("/"):
        if part in {"", ".", ".."} or part.startswith(RESERVED) or "\x00" in part or len(part.encode()) > NAME_MAX:
            shown = path if len(path) <= 200 else path[:200] + "…"
            raise NameCollision(f"{where}: the key {shown!r} can't be the name of a file in the cache.")


def check_requestable(objects: Iterable[SelectedObject], *, where: str) -> None:
    """Rejects keys with dot segments, because libcurl removes those from the paths of signed requests.

    Raises:
        NameCollision: A key has one.
    """
    for each in objects:
        if not {".", ".."}.isdisjoint(each.key.split("/")):
            raise NameCollision(f'{where}: the key {each.key!r} has a part "." or "..", which URLs can\'t have.')


def check_path_conflicts(paths: Iterable[str], *, where: str) -> None:
    """Checks that no two files have the same path, and that no file has the path of another one's directory.

    Raises:
        NameCollision: There is a conflict; the message names both files.
    """
    files: set[str] = set()
    for path in paths:
        if path in files:
            raise NameCollision(f"{where}: two objects have the same path in the cache, {path!r}.")
        files.add(path)
    for path in sorted(files):
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise NameCollision(
                    f"{where}: in the cache, {parent!r} would be both a file and the directory of {path!r}."
                )
            parent = parent.rpartition("/")[0]


def _ranks(
    paths: Sequence[str], ranks: RankSelection | None, *, weights: Weights, where: str, notes: list[str]
) -> dict[str, int]:
    """Returns the rank of each file that has one."""
    if not paths:
        return {}
    shown = rank_pattern((ranks or RankSelection()).pattern, weights)
    pattern = rank_expression(shown)
    if pattern is None:
        raise InvalidPlan(f"The pattern of ranks {shown!r} must have exactly one integer field such as %03d.")
    several = weights is Weights.SAFETENSORS and "*" in shown
    found: dict[str, int] = {}
    files: dict[int, str] = {}
    for path in paths:
        match = pattern.fullmatch(path.rpartition("/")[2])
        if match is None:
            continue
        rank = int(match[1])
        if rank in files and not several:
            raise NameCollision(f"{where}: {files[rank]!r} and {path!r} are both rank {rank}.")
        files[rank] = path
        found[path] = rank
    if ranks is not None:
        _check_ranks(files, ranks.count or 0, shown=shown, where=where)
    elif files:
        gaps = [rank for rank in range(max(files)) if rank not in files] if max(files) < 10_000 else []
        if gaps:
            notes.append(f"{_rank_list(gaps)} {_is_or_are(gaps)} missing at the source, but higher ranks are present.")
    return found


def _check_ranks(files: Collection[int], count: int, *, shown: str, where: str) -> None:
    missing = [rank for rank in range(count) if rank not in files]
    if missing:
        raise ObjectNotFound(
            f"{where}: {_rank_list(missing)} of {count} {_is_or_are(missing)} missing (file names: {shown})."
        )
    if not files:
        raise ObjectNotFound(f"{where}: no file name matches the pattern of ranks, {shown}.")


def _suffixes(files: FileSelection) -> str:
    """Returns the endings of the files that may be weights, for a message."""
    found = {Weights.TENSORIZER: TENSORS_SUFFIX, Weights.SAFETENSORS: SAFETENSORS_SUFFIX}
    return found.get(files.weights, f"{TENSORS_SUFFIX} or {SAFETENSORS_SUFFIX}")


def _left_out_note(paths: Sequence[str], weights: Weights) -> str:
    """Returns the remark about files that no pattern matches. Code of models and tokenizers is named first."""
    needed = [path for path in paths if path.rpartition("/")[2].endswith(CODE_SUFFIXES)]
    ordered = [*needed, *(path for path in paths if path not in needed)]
    shown = ", ".join(escape_unprintable(path)[:100] for path in ordered[:5])
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    code = "; the model's own code or tokenizer may need them" if needed else ""
    how = "To load them, use --include (spec.files.companions)."
    if weights is Weights.TENSORIZER and any(path.endswith(SAFETENSORS_SUFFIX) for path in paths):
        how += " To load the .safetensors files and not the .tensors files, use --weights safetensors."
    return f"Left out, because no pattern matches: {shown}{more}{code}. {how}"


def _models_notes(kinds: Mapping[str, Kind]) -> list[str]:
    """Returns the remark that engines find no model in the top folder, or none."""
    folders = find_models_below(kinds)
    if not folders:
        return []
    shown = ", ".join(f"{escape_unprintable(folder)[:100]}/" for folder in folders[:5])
    more = f" and {len(folders) - 5} more" if len(folders) > 5 else ""
    what = "The model is" if len(folders) == 1 else "Models are"
    how = "Give them the folder below the entry's, or load its prefix alone."
    return [f"{what} in {shown}{more} and not at the top, where engines look. {how}"]


def _rank_list(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:20])) + (", …" if len(ranks) > 20 else "")
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}"


def _is_or_are(ranks: Sequence[int]) -> str:
    return "is" if len(ranks) == 1 else "are"
