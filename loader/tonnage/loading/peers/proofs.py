"""Makes the proofs that a load shows to peers: that its identity can read the objects, without its credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.contract.revision import HUB_PLACE
from tonnage.source.endpoint_urls import is_presigned, quote_key
from tonnage.source.sigv4 import presigned_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tonnage.source.resolve import ResolvedObject
    from tonnage.source.sigv4 import Credentials

PROOF_SECONDS = 300
"""For how long a presigned HEAD is valid: a peer sends it at once, but clocks differ."""


def make_proofs(
    items: Sequence[ResolvedObject], credentials: Sequence[Credentials | None], *, now: float
) -> tuple[str, ...]:
    """Returns a URL for each place of the objects; none if one can't be proven without giving a secret away.

    Of S3 it is a presigned HEAD of one object. Of HTTP and hubs it is the URL without token or signature, which the
    peer requests: it works for what anyone can read.

    Args:
        items: The objects of a load.
        credentials: The credentials of each of the plan's sources.
        now: Unix time in seconds.
    """
    proofs: dict[str, str] = {}
    for item in sorted(items, key=lambda item: item.kind != "tensors"):
        if item.place in proofs:
            continue
        target, pin = item.target, item.pin
        if not item.place:
            proofs[item.place] = pin.key
        elif item.place.startswith(HUB_PLACE):
            endpoint = item.place.removeprefix(HUB_PLACE)
            proofs[item.place] = f"{endpoint}/resolve/{pin.version_id}/{quote_key(pin.key)}"
        elif target.region and (found := credentials[item.source]) is not None:
            proofs[item.place] = presigned_url(
                "HEAD",
                target.url,
                region=target.region,
                credentials=found,
                requester_pays=target.requester_pays,
                now=now,
                seconds=PROOF_SECONDS,
            )
        else:
            proofs[item.place] = target.url
    if any(not item.place and is_presigned(item.target.url) for item in items):
        return ()
    return tuple(proofs.values())
