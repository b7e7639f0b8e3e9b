"""``tonnage resolve``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cli import output
from tonnage.cli.invocation import LONG_REPORT_TIMEOUT
from tonnage.cli.plan_arguments import plan_from_arguments
from tonnage.cli.tables import Column, print_table
from tonnage.contract.report import encode_report
from tonnage.contract.revision import HUB_PLACE
from tonnage.contract.sizes import human_bytes
from tonnage.errors import escape_unprintable
from tonnage.loading import resolve_plan

if TYPE_CHECKING:
    import argparse

    from tonnage.cli.invocation import Invocation
    from tonnage.contract.report import Report

_COLUMNS = (
    Column("OBJECT", foldable=True),
    Column("BYTES", number=True),
    Column("ETAG"),
    Column("VERSION"),
)


def run(arguments: argparse.Namespace, invocation: Invocation) -> int:
    """Prints the objects of a source's current revision, with ETags and versions.

    Raises:
        TonnageError: They can't be listed.
    """
    plan = invocation.plan = plan_from_arguments(arguments)
    invocation.start_reporting()
    report = resolve_plan(plan, environment=invocation.environment, canceled=invocation.cancellation.canceled)
    report = invocation.write_report(report)
    invocation.send_report(report, timeout=LONG_REPORT_TIMEOUT)
    if arguments.json:
        output.write_line(encode_report(report))
    else:
        _print(report)
    return 0


def _print(report: Report) -> None:
    print_table(_COLUMNS, object_rows(report))
    for note in report.notes:
        print(f"note: {escape_unprintable(note)}")
    count = sum(len(source.objects) for source in report.resolved or ())
    print(f"revision {report.revision}: {count} object{'s' if count != 1 else ''}, {human_bytes(report.bytes)}")
    print(f"digest   {report.digest}")
    print(f"entry    {report.entry}")


def _object_uri(place: str, key: str) -> str:
    """Returns the URI of an object. ``place`` of an S3 source ends with its bucket; for HTTP the key is the URL."""
    if place.startswith(HUB_PLACE):
        return f"hf://{'/'.join(place.rsplit('/', 2)[-2:])}/{key}"
    return f"s3://{place.rpartition('/')[2]}/{key}" if place else key


def object_rows(report: Report) -> list[list[str]]:
    """Returns the rows of the table: URI, bytes, ETag and version."""
    return [
        [
            _object_uri(source.place, pin.key),
            f"{pin.size:,}",
            pin.etag or "-",
            pin.version_id or "-",
        ]
        for source in report.resolved or ()
        for pin in source.objects
    ]
