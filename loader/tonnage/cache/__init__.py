"""The cache: entries on a medium, with locks, a journal and an atomic commit.

Everything that a hit needs is exported here. Import ``commit``, ``verify`` and ``listing`` where they are used.
"""

from tonnage.cache.cache import Cache
from tonnage.cache.cgroups import memory_limit
from tonnage.cache.entry import Entry, EntryState, EntryStatus, Published
from tonnage.cache.journal import Journal, JournalHeader
from tonnage.cache.lock_holders import LockHolder, find_lock_holders
from tonnage.cache.locks import FileLock, LockMode
from tonnage.cache.manifest import FileRecord, Manifest, SourceRecord, TensorRecord, TensorTable
from tonnage.cache.medium import check_free_space, inspect_medium

__all__ = [
    "Cache",
    "Entry",
    "EntryState",
    "EntryStatus",
    "FileLock",
    "FileRecord",
    "Journal",
    "JournalHeader",
    "LockHolder",
    "LockMode",
    "Manifest",
    "Published",
    "SourceRecord",
    "TensorRecord",
    "TensorTable",
    "check_free_space",
    "find_lock_holders",
    "inspect_medium",
    "memory_limit",
]
