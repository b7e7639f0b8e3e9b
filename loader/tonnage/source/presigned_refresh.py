"""Replaces presigned URLs that expire during a load, if the plan's file of URLs has new ones by then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from tonnage.contract import HttpSource, HubSource
from tonnage.errors import InvalidPlan
from tonnage.source.http_source import read_urls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tonnage.contract import Plan
    from tonnage.source.request_target import RequestTarget
    from tonnage.source.resolve import ResolvedObject


def refresh_targets(plan: Plan, items: Sequence[ResolvedObject], environment: Mapping[str, str]) -> list[RequestTarget]:
    """Returns the request targets of the objects, with the URLs that the plan's files contain now.

    The target of an object stays the same if the file can't be read, or no longer contains the object.
    """
    urls: dict[tuple[int, str], str] = {}
    for number, source in enumerate(plan.sources):
        if isinstance(source, HttpSource) and source.urls_file:
            try:
                urls.update({(number, key): url for key, url in read_urls(source, environment).items()})
            except InvalidPlan:
                continue
    targets = [
        structs.replace(item.target, url=urls.get((item.source, item.target.label), item.target.url)) for item in items
    ]
    for number, source in enumerate(plan.sources):
        if isinstance(source, HubSource):
            from tonnage.source.hub_source import refresh_hub_targets  # not imported for other sources

            own = [at for at, item in enumerate(items) if item.source == number]
            new = refresh_hub_targets(source, [(items[at].pin, items[at].target) for at in own], environment)
            for at, target in zip(own, new, strict=True):
                targets[at] = target
    return targets
