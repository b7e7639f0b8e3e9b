"""The contract between operator and loader: plans (operator to loader) and reports (loader to operator).

Both are JSON with snake_case keys. Unknown fields are ignored, so that consecutive releases are compatible; an unknown
schema version is rejected. The operator imports only this package and ``tonnage.errors`` from the loader.
"""

from tonnage.contract.plan import (
    SCHEMA_VERSION,
    AddressingStyle,
    FileKind,
    FileSelection,
    HttpSource,
    Identity,
    Layout,
    Limits,
    ObjectPin,
    Plan,
    RankSelection,
    Reporting,
    S3Source,
    Source,
    Verify,
    decode_plan,
    encode_plan,
    file_selection,
)
from tonnage.contract.report import (
    Medium,
    Outcome,
    Progress,
    Report,
    ReportKind,
    ResolvedSource,
    decode_report,
    encode_report,
    termination_message,
)
from tonnage.contract.revision import ENTRY_NAME_PATTERN, entry_name, revision_digest, revision_id, source_place

__all__ = [
    "ENTRY_NAME_PATTERN",
    "SCHEMA_VERSION",
    "AddressingStyle",
    "FileKind",
    "FileSelection",
    "HttpSource",
    "Identity",
    "Layout",
    "Limits",
    "Medium",
    "ObjectPin",
    "Outcome",
    "Plan",
    "Progress",
    "RankSelection",
    "Report",
    "ReportKind",
    "Reporting",
    "ResolvedSource",
    "S3Source",
    "Source",
    "Verify",
    "decode_plan",
    "decode_report",
    "encode_plan",
    "encode_report",
    "entry_name",
    "file_selection",
    "revision_digest",
    "revision_id",
    "source_place",
    "termination_message",
]
