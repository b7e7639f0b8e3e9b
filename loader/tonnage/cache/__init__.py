"""The cache: entries on a medium, with locks, a journal and an atomic commit.

What a hit needs is imported from here; ``verify`` and ``usage`` are imported by whoever needs them.
"""

from tonnage.cache.boot import boot_id
from tonnage.cache.cgroups import memory_limit
from tonnage.cache.entry import Entry, Finding, Published, State
from tonnage.cache.holders import Holder, holders
from tonnage.cache.journal import Journal, JournalHeader
from tonnage.cache.locks import FileLock, LockKind
from tonnage.cache.manifest import FileRecord, Manifest, SourceRecord, TensorRecord, TensorTable
from tonnage.cache.medium import check_room, human_bytes, medium_of
from tonnage.cache.root import Cache

__all__ = [
    "Cache",
    "Entry",
    "FileLock",
    "FileRecord",
    "Finding",
    "Holder",
    "Journal",
    "JournalHeader",
    "LockKind",
    "Manifest",
    "Published",
    "SourceRecord",
    "State",
    "TensorRecord",
    "TensorTable",
    "boot_id",
    "check_room",
    "holders",
    "human_bytes",
    "medium_of",
    "memory_limit",
]
