"""One line for a person at the end of a load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.report import Outcome

if TYPE_CHECKING:
    from tonnage.contract.report import Report

_VERIFICATION_TEXT = {
    "crc32": "verified by CRC-32",
    "sha256": "verified by SHA-256",
    "size": "checked by size and revision",
}


def load_summary(report: Report) -> str:
    """Returns what was loaded, how fast, how it was checked, and where it lies, with the report's notes."""
    from tonnage.contract.sizes import human_bytes

    proof = _VERIFICATION_TEXT.get(report.verified, "not verified")
    tensors = "1 tensor" if report.tensors == 1 else f"{report.tensors:,} tensors"
    if report.outcome is Outcome.HIT:
        what = f"{report.entry} is in the cache ({human_bytes(report.bytes)}, {tensors} {proof}): "
        what += f"a hit in {report.seconds * 1000:.0f} ms"
    else:
        rate = report.downloaded_bytes / report.seconds / 1e9 if report.seconds else 0.0
        what = f"Loaded {report.entry}: {human_bytes(report.bytes)} in {report.seconds:.1f} s ({rate:.2f} GB/s"
        what += f", {human_bytes(report.resumed_bytes)} resumed" if report.resumed_bytes else ""
        what += f"), {tensors} {proof}"
    return "\n".join([what, *(f"  note: {note}" for note in report.notes), f"  → {report.path}"])
