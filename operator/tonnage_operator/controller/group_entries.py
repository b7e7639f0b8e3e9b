"""The entries whose revision a group of pods keeps: its next pod may start on any node that has one."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from tonnage_operator.api.nodecache import EntryKey
    from tonnage_operator.domain.observed.pod import Pod

GRACE_PERIOD: Final = 15.0
"""Seconds for which an entry is kept after the last pod of its groups has ended, as when a whole group is restarted."""
_MAX_ENDED: Final = 10_000
"""Entries whose groups have ended that are remembered."""


class GroupEntries:
    """Entries by the pods of groups that were admitted with them, updated as an event handler of the pods' store.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._uids: dict[EntryKey, set[str]] = defaultdict(set)
        self._ended: dict[EntryKey, float] = {}

    def update(self, before: Pod | None, after: Pod | None) -> None:
        """Follows the change of a pod."""
        for key in grouped_entries(before):
            self._uids[key].discard(before.uid if before else "")
            if not self._uids[key]:
                del self._uids[key]
                self._ended[key] = self._clock()
        for key in grouped_entries(after):
            self._uids[key].add(after.uid if after else "")
            self._ended.pop(key, None)
        while len(self._ended) > _MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def remaining(self, keys: Collection[EntryKey], is_admitted: Callable[[str], bool]) -> dict[EntryKey, float]:
        """Returns for how many more seconds each of these entries is kept for a group; infinite while it has pods.

        Args:
            keys: Of the entries.
            is_admitted: Whether the held entries of the pod with a uid count.
        """
        found = {}
        for key in keys:
            if any(is_admitted(uid) for uid in self._uids.get(key, ())):
                found[key] = math.inf
            elif key in self._ended and (left := self._ended[key] + GRACE_PERIOD - self._clock()) > 0:
                found[key] = left
        return found


def grouped_entries(pod: Pod | None) -> set[EntryKey]:
    """Returns the entries on nodes that a pod holds with its group, as long as it has not ended."""
    if pod is None or pod.is_terminal:
        return set()
    return {held.entry_key for held in pod.held_entries if held.group and held.key}
