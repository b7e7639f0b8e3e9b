"""What resolving found out about a store by asking: a load with it in its plan asks nothing more, unless it must."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import pytest
from msgspec import structs

from support.faulty_server import Fault, FaultyServer, Request
from tonnage.contract import AddressingStyle, ObjectPin, Plan, S3Source, StoreBehavior
from tonnage.errors import AccessDenied, RequestRejected, SourceChanged
from tonnage.source.resolve import resolve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tonnage.source.resolve import ResolvedRevision

SOURCE = S3Source(bucket="b", prefix="m/")
VIRTUAL = StoreBehavior(addressing_style=AddressingStyle.VIRTUAL)
ETAG_ONLY = StoreBehavior(etag_only=True)
REGION = StoreBehavior(region="eu-west-3")


def refusal(status: int, code: str, message: str) -> Fault:
    return Fault(status=status, body=f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())


class Demand(NamedTuple):
    """What a store refuses, how, and what resolving reports of it."""

    refuses: Callable[[Request], bool]
    answer: Fault
    behavior: StoreBehavior


def is_path_style(request: Request) -> bool:
    return request.headers["host"].startswith("store.localhost")


def is_by_version(request: Request) -> bool:
    return "versionId" in request.query


def is_for_another_region(request: Request) -> bool:
    return "/eu-west-3/" not in request.headers["authorization"]


DEMANDS = {
    "virtual style": Demand(is_path_style, refusal(400, "PathStyleRequestNotAllowed", "No path style."), VIRTUAL),
    "another region": Demand(
        is_for_another_region, Fault(status=301, headers={"x-amz-bucket-region": "eu-west-3"}), REGION
    ),
    "no versions": Demand(is_by_version, refusal(501, "NotImplemented", "No versions."), ETAG_ONLY),
    "versions denied": Demand(is_by_version, refusal(403, "AccessDenied", "No."), ETAG_ONLY),
}
ALL = tuple(DEMANDS.values())[:3]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with FaultyServer(domain="store.localhost") as made:
        for name in ("a.tensors", "b.tensors", "config.json"):
            made.put(f"b/m/{name}", b"xxxx", version_id="v1")
        yield made


def resolve_at(server: FaultyServer, source: S3Source = SOURCE) -> ResolvedRevision:
    server.requests.clear()
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_ENDPOINT_URL_S3": f"http://store.localhost:{server.port}",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }
    return resolve(Plan(sources=(source,)), environment=environment)


def pins_of(resolved: ResolvedRevision) -> tuple[ObjectPin, ...]:
    return resolved.sources[0].objects


@pytest.mark.parametrize("demands", [*((each,) for each in DEMANDS.values()), ALL], ids=[*DEMANDS, "all"])
@pytest.mark.parametrize("pinned", [True, False], ids=["by objects", "by digest"])
def test_a_load_asks_nothing_that_resolving_found(
    server: FaultyServer, demands: tuple[Demand, ...], pinned: bool
) -> None:
    for demand in demands:
        server.add_fault(demand.answer, when=demand.refuses)
    found = resolve_at(server)
    assert all(any(map(demand.refuses, server.requests)) for demand in demands)
    behavior = found.sources[0].behavior
    expected = {name: value for each in demands for name, value in msgspec.to_builtins(each.behavior).items()}
    assert behavior == msgspec.convert(expected, StoreBehavior)

    source = structs.replace(SOURCE, behavior=behavior, objects=pins_of(found) if pinned else None)
    loaded = resolve_at(server, source)
    assert loaded.digest == found.digest
    assert [each.target for each in loaded.objects] == [each.target for each in found.objects]
    assert not any(demand.refuses(request) for demand in demands for request in server.requests)
    # A HEAD for each; if pinned by digest also a listing, and whether this load's identity may read versions.
    others = 0 if pinned else 1 + (not behavior.etag_only)
    assert len(server.requests) == len(loaded.objects) + others


def test_a_store_that_is_asked_in_the_ordinary_way_has_no_behavior(server: FaultyServer) -> None:
    assert resolve_at(server).sources[0].behavior is None
    fixed = structs.replace(SOURCE, addressing_style=AddressingStyle.VIRTUAL)
    assert resolve_at(server, fixed).sources[0].behavior is None


def test_a_store_that_no_longer_takes_the_style_is_asked_again(server: FaultyServer) -> None:
    pins = pins_of(resolve_at(server))
    server.domain = ""  # the host's first part is not the bucket any more
    for objects in (pins, None):
        loaded = resolve_at(server, structs.replace(SOURCE, behavior=VIRTUAL, objects=objects))
        assert pins_of(loaded) == pins
        assert loaded.sources[0].behavior is None


def test_a_store_that_demands_another_region_than_before_is_asked_again(server: FaultyServer) -> None:
    server.add_fault(DEMANDS["another region"].answer, when=is_for_another_region)
    old = structs.replace(SOURCE, behavior=StoreBehavior(region="eu-central-1"))
    assert resolve_at(server, old).sources[0].behavior == REGION


def test_a_version_that_can_be_requested_by_now_is_loaded_though_the_object_was_overwritten(
    server: FaultyServer,
) -> None:
    pins = pins_of(resolve_at(server))
    server.put("b/m/a.tensors", b"yyyy", version_id="v2")
    pinned = structs.replace(SOURCE, behavior=ETAG_ONLY, objects=pins)
    assert all("versionId=v1" in each.target.url for each in resolve_at(server, pinned).objects)
    server.add_fault(DEMANDS["no versions"].answer, when=is_by_version)
    with pytest.raises(SourceChanged, match="changed after the plan pinned it"):
        resolve_at(server, pinned)


def test_a_configured_style_is_not_replaced_by_what_was_found(server: FaultyServer) -> None:
    server.add_fault(DEMANDS["virtual style"].answer, when=is_path_style)
    with pytest.raises(RequestRejected, match="PathStyleRequestNotAllowed"):
        resolve_at(server, structs.replace(SOURCE, behavior=VIRTUAL, addressing_style=AddressingStyle.PATH))


def test_the_error_is_that_of_the_style_that_was_found(server: FaultyServer) -> None:
    server.add_fault(DEMANDS["virtual style"].answer, when=is_path_style)
    server.add_fault(refusal(403, "AccessDenied", "Not you."))
    with pytest.raises(AccessDenied, match="Not you"):
        resolve_at(server, structs.replace(SOURCE, behavior=VIRTUAL))
