"""``tonnage inspect``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tonnage.cli import output
from tonnage.cli.parser import UsageError
from tonnage.cli.plan_arguments import build_plan
from tonnage.cli.tables import Column, print_table
from tonnage.contract.plan import ComputedBuffers, Layout
from tonnage.contract.sizes import human_bytes
from tonnage.errors import escape_unprintable
from tonnage.inspection import inspect_files, inspect_sources

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tonnage.cli.invocation import Invocation
    from tonnage.inspection import FileInspection, Inspection

DEFAULT_TENSORS_SHOWN = 20
_NAME_LIMIT = 200
_TENSOR_COLUMNS = (
    Column("TENSOR", foldable=True),
    Column("DTYPE"),
    Column("SHAPE"),
    Column("BYTES", number=True),
    Column("OFFSET", number=True),
)
_SEGMENT_COLUMNS = (
    Column("SEGMENT", number=True),
    Column("SIZE", number=True),
    Column("TENSORS", number=True),
    Column("FILE IN THE CACHE", foldable=True),
)


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Prints the tensors, segments and companions of files.

    Raises:
        TonnageError: They can't be inspected.
    """
    inspection = _inspect(arguments, invocation)
    if arguments.json:
        output.write_json(inspection)
        return 0
    shown = DEFAULT_TENSORS_SHOWN if arguments.tensors is None else arguments.tensors
    for file in inspection.files:
        if file.kind == "tensors":
            _print_file(file, shown)
    _print_companions(inspection)
    for note in inspection.notes:
        print(f"note: {escape_unprintable(note)}")
    print(inspection_summary(inspection))
    return 0


def inspection_summary(inspection: Inspection) -> str:
    """Returns the last line: the totals."""
    files = [file for file in inspection.files if file.kind == "tensors"]
    tensors = sum(len(file.tensors) for file in files)
    segments = sum(len(file.segments) for file in files)
    size = human_bytes(sum(file.size for file in inspection.files))
    parts = [
        f"revision {inspection.revision}" if inspection.revision else "on this machine",
        f"{len(files)} {_suffix(files)} file" + ("s" if len(files) != 1 else ""),
        f"{tensors:,} tensor" + ("s" if tensors != 1 else ""),
        size,
        f"{segments} segment" + ("s" if segments != 1 else "") + f" in the {inspection.layout.value} layout",
    ]
    return ", ".join(parts)


def _suffix(files: Sequence[FileInspection]) -> str:
    formats = {file.format for file in files}
    return "tensor" if len(formats) > 1 else ".safetensors" if "safetensors" in formats else ".tensors"


def file_summary(file: FileInspection) -> str:
    """Returns one line about a file."""
    parts = ["safetensors" if file.format == "safetensors" else f"format version {file.version}"]
    if file.rank is not None:
        parts.append(f"rank {file.rank}")
    parts.append(f"{len(file.tensors):,} tensor" + ("s" if len(file.tensors) != 1 else ""))
    parts.append(f"{human_bytes(file.data_bytes)} of data in {human_bytes(file.size)}")
    if file.format != "safetensors":
        parts.append("encrypted" if file.encrypted else "not encrypted")
    if file.flags:
        parts.append(f"flags {file.flags:#x}")
    return f"{escape_unprintable(file.label)}\n  " + ", ".join(parts)


def _inspect(arguments: argparse.Namespace, invocation: Invocation) -> Inspection:
    local = [word for word in arguments.sources if "://" not in word]
    if local and len(local) < len(arguments.sources):
        raise UsageError("Local files and URLs can't be combined; inspect them separately.", command="tonnage inspect")
    if local:
        return inspect_files(
            local,
            layout=arguments.layout or Layout.SAFETENSORS,
            segment_size=arguments.segment_size or 0,
            computed_buffers=arguments.computed_buffers or ComputedBuffers.SEPARATE,
        )
    plan = invocation.plan = build_plan(arguments)
    deadline = time.monotonic() + plan.limits.timeout if plan.limits.timeout else None
    return inspect_sources(
        plan, environment=invocation.environment, deadline=deadline, canceled=invocation.cancellation.canceled
    )


def _print_file(file: FileInspection, shown: int) -> None:
    print(file_summary(file) + "\n")
    count = len(file.tensors) if shown < 0 else min(shown, len(file.tensors))
    if count:
        rows = [
            [
                tensor.name if len(tensor.name) <= _NAME_LIMIT else tensor.name[:_NAME_LIMIT] + "…",
                tensor.dtype,
                "[" + ", ".join(map(str, tensor.shape)) + "]",
                "meta" if tensor.meta else f"{tensor.bytes:,}",
                f"{tensor.offset:,}",
            ]
            for tensor in file.tensors[:count]
        ]
        print_table(_TENSOR_COLUMNS, rows)
    if count < len(file.tensors):
        print(f"… {len(file.tensors) - count:,} more; show all with --tensors all")
    print()
    segments = [
        [str(at), human_bytes(segment.end - segment.start), f"{segment.tensors:,}", segment.file]
        for at, segment in enumerate(file.segments, start=1)
    ]
    print_table(_SEGMENT_COLUMNS, segments)
    print()


def _print_companions(inspection: Inspection) -> None:
    companions = [file for file in inspection.files if file.kind != "tensors"]
    if companions:
        rows = [[file.path, human_bytes(file.size)] for file in companions]
        print_table((Column("COMPANION", foldable=True), Column("SIZE", number=True)), rows)
        print()
