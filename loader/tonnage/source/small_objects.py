"""Reads small objects whole: indexes and lists of checksums, by which it is decided what to load and how to verify it.

They are compared with the checksums that the same answers state, and are read once more if they don't match.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from tonnage.contract import Verify
from tonnage.errors import Reason
from tonnage.format.checksums import can_compute, checksum_of
from tonnage.source.client import Request, Response
from tonnage.source.request_failure import RequestFailure, Retry
from tonnage.source.responses import strong_etag
from tonnage.source.stated_checksums import etag_checksum, stated_checksums

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tonnage.contract import ObjectChecksum
    from tonnage.source.pinned import RequestContext
    from tonnage.source.request_target import RequestTarget


def read_objects(
    context: RequestContext, targets: Sequence[RequestTarget], *, limit: int, s3: bool = False
) -> list[Response]:
    """Requests objects of at most ``limit`` bytes; returns the responses, those of failed requests included.

    At levels below ``BEST`` nothing is compared.

    Args:
        context: Client and credentials.
        targets: The objects.
        limit: Maximum size in bytes; a longer body is truncated after one byte more.
        s3: Whether ETags may be MD5s, as those of S3.
    """

    def run(numbers: Sequence[int]) -> list[Response]:
        return context.client.run(
            [Request(target=targets[at], provider=context.provider, limit=limit + 1) for at in numbers]
        )

    responses = run(range(len(targets)))
    if context.verify.strength < Verify.BEST.strength:
        return responses
    wrong = [at for at, response in enumerate(responses) if _mismatch(response, limit, s3=s3) is not None]
    for at, response in zip(wrong, run(wrong), strict=True) if wrong else ():
        checksum = _mismatch(response, limit, s3=s3)
        responses[at] = response if checksum is None else _failed(response, targets[at], checksum)
    return responses


def differing_checksum(body: bytes, stated: Iterable[ObjectChecksum]) -> ObjectChecksum | None:
    """Returns a checksum of a whole object that its bytes don't match; None if there is none."""
    return next(
        (
            each
            for each in stated
            if not each.parts and can_compute(each.algorithm) and checksum_of(each.algorithm, body) != each.value
        ),
        None,
    )


def _mismatch(response: Response, limit: int, *, s3: bool) -> ObjectChecksum | None:
    if response.failure is not None or len(response.body) > limit:
        return None
    stated = list(stated_checksums(response.headers, partial=False))
    if s3 and (md5 := etag_checksum(strong_etag(response.headers.get("etag", "")), response.headers)) is not None:
        stated.append(md5)
    return differing_checksum(response.body, stated)


def _failed(response: Response, target: RequestTarget, checksum: ObjectChecksum) -> Response:
    message = f"{target.label} does not match the {checksum.words} that its source states, {checksum}."
    failure = RequestFailure(reason=Reason.CHECKSUM_MISMATCH, message=message, retry=Retry.NEVER)
    return structs.replace(response, failure=failure)
