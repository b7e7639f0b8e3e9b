"""The files of a model on this machine, and their tensors: safetensors, or what ``torch.save`` wrote."""

from __future__ import annotations

import os
import pickle
import warnings
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from msgspec import structs

from tonnage.attach.copy.tensor_views import tensor_without_data
from tonnage.attach.files.catalog import read_files
from tonnage.contract.plan import Weights
from tonnage.contract.selection import matches
from tonnage.errors import (
    AccessDenied,
    CacheDamaged,
    DtypeUnsupported,
    FormatDamaged,
    FormatUnsupported,
    NoTensorFiles,
    ObjectNotFound,
    TonnageError,
)
from tonnage.format.tensor_names import short_repr
from tonnage.serialize.layout import TensorSpec, group_path
from tonnage.source.index_files import IndexFile, check_shards, listed_files, select_listed
from tonnage.source.selection import filter_ranks, select

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from tonnage.attach.files.catalog import Catalog
    from tonnage.contract import FileSelection
    from tonnage.source.selection import SelectedObject, Selection

SAFETENSORS = ".safetensors"
STATE_DICT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MAX_FILES = 100_000
_STATE_DICTS = "pytorch_model*.bin"
_STATE_DICT_INDEX = ".bin.index.json"
_CHANGED = "Check the disk, and that nothing writes to the source meanwhile; then start again."
_STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Keys below which training programs keep a model's state dict."""


class LocalFile(NamedTuple):
    """A file, and its path below the source."""

    location: Path
    path: str


class Group(Protocol):
    """The tensors of one ``.tensors`` file, or of several where one isn't enough."""

    path: str

    @property
    def specs(self) -> Sequence[TensorSpec]:
        """The tensors, in order."""

    def tensor(self, name: str) -> torch.Tensor:
        """Returns a copy of a tensor. The caller may change it."""

    def close(self) -> None:
        """Closes the files."""


class Source(NamedTuple):
    """The weights and the companions of a model."""

    weights: tuple[LocalFile, ...]
    companions: tuple[LocalFile, ...]
    notes: tuple[str, ...]


def open_groups(weights: Sequence[LocalFile]) -> Iterator[Group]:
    """Yields the groups of files one after the other, each open until the next.

    Raises:
        TonnageError: A file is damaged, or not of this kind.
    """
    groups: dict[str, list[Path]] = {}
    for file in weights:
        groups.setdefault(group_path(file.path), []).append(file.location)
    for path, files in groups.items():
        kind = SafetensorsGroup if files[0].suffix == SAFETENSORS else StateDictGroup
        group = kind(path, files)
        try:
            yield group
        finally:
            group.close()


def find_files(paths: Sequence[Path], files: FileSelection) -> Source:
    """Returns the files of folders and files on this machine. Files that are given by name are weights.

    Raises:
        ObjectNotFound: A path does not exist.
        AccessDenied: A folder can't be read.
        NoTensorFiles: There are no weights.
    """
    weights: list[LocalFile] = []
    companions: list[LocalFile] = []
    notes: list[str] = []
    for path in paths:
        if path.is_file():
            weights.append(LocalFile(path, path.name))
            continue
        if not path.exists():
            raise ObjectNotFound(f"{path} does not exist.", remedy="Check the path of SOURCE.")
        found = _select(path, files)
        weights += found.weights
        companions += found.companions
        notes += found.notes
    unknown = [each for each in weights if each.location.suffix not in {SAFETENSORS, *STATE_DICT_SUFFIXES}]
    if unknown:
        raise FormatUnsupported(
            f"{unknown[0].location} is no {SAFETENSORS} file and no state dict ({', '.join(STATE_DICT_SUFFIXES)}).",
            remedy="Pass a folder with safetensors files, or a file that torch.save wrote, with its usual ending.",
        )
    if not weights:
        raise NoTensorFiles(
            f"{paths[0]} has no {SAFETENSORS} file and no pytorch_model*.bin.",
            remedy="Check the path, --include and --exclude; name a state dict by its file.",
        )
    return Source(tuple(weights), tuple(companions), tuple(notes))


def _select(folder: Path, files: FileSelection) -> Source:
    """Selects a folder's files as a load selects those of a prefix."""
    where = str(folder)
    paths = list(_walk(folder))
    wanted = structs.replace(files, weights=Weights.SAFETENSORS)

    def choose(listed: Collection[str]) -> Selection:
        return select([(path, path) for path in paths], wanted, where=where, need_tensors=False, listed=listed)

    def read(indexes: Sequence[SelectedObject]) -> dict[str, IndexFile]:
        return {each.path: IndexFile((folder / each.path).read_bytes()) for each in indexes}

    selection, _ = select_listed(choose, read, where=where)
    check_shards(selection, where=where)
    chosen = filter_ranks(selection.objects, files.ranks, where=where)
    weights = [each.path for each in chosen if each.kind == "tensors"]
    if not weights and (weights := _state_dicts(folder, paths, files)):
        others = [path for path in paths if path not in weights]
        selection = select([(path, path) for path in others], wanted, where=where, need_tensors=False)
        chosen = selection.objects
    indexes = {each.path for each in selection.indexes}
    companions = [each.path for each in chosen if each.kind == "companion" and each.path not in indexes]
    found = Source(
        tuple(LocalFile(folder / path, path) for path in weights),
        tuple(LocalFile(folder / path, path) for path in companions if not path.endswith(_STATE_DICT_INDEX)),
        selection.notes,
    )
    for file in (*found.weights, *found.companions):
        _check_file(file.location)
    return found


def _check_file(path: Path) -> None:
    """Checks that a file can be read.

    Raises:
        ObjectNotFound: It is a link to nothing, as in a copy of a cache without its ``blobs``, or no regular file.
    """
    if path.is_file():
        return
    if path.is_symlink() and not path.exists():
        raise ObjectNotFound(
            f"{path} is a link to {path.readlink()}, which does not exist.",
            remedy="Complete the source: copy what its links lead to, with `cp --dereference` or `rsync --copy-links`.",
        )
    raise ObjectNotFound(f"{path} is not a regular file.", remedy="Leave it out with --exclude.")


def _state_dicts(folder: Path, paths: Sequence[str], files: FileSelection) -> list[str]:
    """Returns a folder's state dicts in the names of transformers: those that their index lists, and no variants.

    Raises:
        ObjectNotFound: Their index lists a file that does not exist.
    """
    found = [path for path in paths if fnmatchcase(path, _STATE_DICTS) and not matches(path, files.exclude)]
    if f"pytorch_model{_STATE_DICT_INDEX}" not in paths:
        return [path for path in found if not _is_variant(path)] or found
    label = f"{folder}/pytorch_model{_STATE_DICT_INDEX}"
    listed = listed_files(Path(label).read_bytes(), label=label)
    if missing := sorted(listed - set(found)):
        raise ObjectNotFound(f"{label} lists {missing[0]}, which does not exist.", remedy="Complete the source.")
    return [path for path in found if path in listed]


def _is_variant(path: str) -> bool:
    """Returns whether a state dict is a variant, such as ``pytorch_model.fp16.bin``."""
    return "." in path.removesuffix(".bin")


def _walk(folder: Path) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise AccessDenied(
            f"{error.filename} can't be listed: {error.strerror}.", remedy="Give this user the right to read it."
        )

    count = 0
    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_loop(Path(root) / name))
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                raise FormatUnsupported(f"{folder} has more than {MAX_FILES:,} files; pass the folder of one model.")
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _is_loop(folder: Path) -> bool:
    """Returns whether a folder is a link to one above it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


class SafetensorsGroup:
    """Tensors of safetensors files."""

    def __init__(self, path: str, files: Sequence[Path]) -> None:
        self.path = path
        try:
            self._catalog: Catalog = read_files(files)
        except (CacheDamaged, FormatDamaged) as error:
            raise FormatDamaged(error.message, remedy="Copy the model to the source again: it is damaged.") from error
        self._specs = [
            TensorSpec(name, dtype_text(_torch_dtype(name, record.dtype)), len(record.shape), record.length)
            for name, record in self._catalog.records.items()
        ]

    @property
    def specs(self) -> Sequence[TensorSpec]:
        return self._specs

    def tensor(self, name: str) -> torch.Tensor:
        record = self._catalog.records[name]
        if not record.length:
            return tensor_without_data(record, "cpu", meta_tensors="meta")
        file = self._catalog.files[record.file]
        data = torch.empty(record.length, dtype=torch.uint8)
        _read_exactly(file.descriptor, memoryview(data.numpy().data), record.offset, file.path)
        return data.view(_torch_dtype(name, record.dtype)).view(record.shape)

    def close(self) -> None:
        self._catalog.close()


class StateDictGroup:
    """Tensors of files that ``torch.save`` wrote. They are mapped, and nothing but tensors is unpickled."""

    def __init__(self, path: str, files: Sequence[Path]) -> None:
        self.path = path
        self._tensors: dict[str, torch.Tensor] = {}
        for file in files:
            for name, tensor in _read_state_dict(file).items():
                if name in self._tensors:
                    raise FormatUnsupported(f"The tensor {short_repr(name)} is in several of the files of {path}.")
                self._tensors[name] = tensor
        self._specs = [
            TensorSpec(name, dtype_text(tensor.dtype), tensor.dim(), tensor.nbytes)
            for name, tensor in self._tensors.items()
        ]

    @property
    def specs(self) -> Sequence[TensorSpec]:
        return self._specs

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name].detach().clone(memory_format=torch.contiguous_format)

    def close(self) -> None:
        self._tensors.clear()


def _read_exactly(descriptor: int, buffer: memoryview, offset: int, path: Path) -> None:
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
        except OSError as error:
            raise FormatDamaged(f"{path} can't be read: {error.strerror}.", remedy=_CHANGED) from error
        if not count:
            raise FormatDamaged(f"{path} became shorter while it was read.", remedy=_CHANGED)
        done += count


def _read_state_dict(file: Path) -> Mapping[str, torch.Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # such as that of sparse tensors, which are refused below
            loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise FormatUnsupported(
            f"{file} has more than tensors, so it is not unpickled: it could run any code.",
            remedy="Save only the state dict: torch.save(model.state_dict(), path).",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        first = str(error).strip().split("\n", 1)[0][:200]
        raise FormatUnsupported(
            f"{file} can't be mapped as a state dict: {first}",
            remedy="Save it again with a current PyTorch: torch.save(torch.load(path, weights_only=True), path).",
        ) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict):
        raise FormatUnsupported(f"{file} holds an object of {type(loaded).__name__}, not a state dict.")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise FormatUnsupported(
                f"{file} has {short_repr(str(name))}, which is a {type(value).__name__}, not a tensor.",
                remedy="Save only the state dict: torch.save(model.state_dict(), path).",
            )
        if value.layout is not torch.strided or value.is_quantized:
            raise _unsupported(name, f"is sparse or quantized ({value.dtype})")
    return loaded


def _torch_dtype(name: str, dtype: str) -> torch.dtype:
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise _unsupported(name, f"has the dtype {dtype}, which PyTorch {torch.__version__} does not have")
    return found


def dtype_text(dtype: torch.dtype) -> str:
    """Returns the longest text for a dtype in the index of a ``.tensors`` file."""
    return f"<V{dtype.itemsize}\0{dtype}"


def is_opaque(dtype: torch.dtype) -> bool:
    """Returns whether numpy lacks the dtype, so that tensorizer writes plain bytes with its name."""
    try:
        torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        return True
    return False


def check_writable(name: str, tensor: torch.Tensor, *, encrypted: bool) -> None:
    """Checks that tensorizer can read back what it would write.

    Raises:
        DtypeUnsupported: It can't.
    """
    if tensor.numel() and not tensor.is_meta:
        return
    if is_opaque(tensor.dtype):
        raise _unsupported(name, f"has no data and the dtype {tensor.dtype}, which tensorizer can't read back")
    if encrypted and not tensor.is_meta:
        raise _unsupported(name, "has no data, and tensorizer can't encrypt such a tensor")


def _unsupported(name: str, problem: str) -> TonnageError:
    return DtypeUnsupported(
        f"The tensor {short_repr(name)} {problem}.",
        remedy="Convert or remove the tensor in the source; safetensors in the bucket can be loaded as they are.",
    )
