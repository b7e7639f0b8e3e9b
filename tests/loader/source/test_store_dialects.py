"""Stores that differ from AWS: in listings, addressing, versions, encryption, ranges, and in their errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.faulty_responses import ListingDialect
from support.faulty_server import Fault, FaultyServer, slow_down
from tonnage.contract import FileSelection, HttpSource, Plan, S3Source
from tonnage.errors import (
    AccessDenied,
    BucketNotFound,
    EndpointUnreachable,
    FormatUnsupported,
    NoTensorFiles,
    ObjectNotFound,
    RequestRejected,
    StoreUnsupported,
    TonnageError,
)
from tonnage.source.resolve import resolve
from tonnage.source.source_uri import parse_sources

if TYPE_CHECKING:
    from support.faulty_server import Request
    from tonnage.source.resolve import ResolvedRevision

SSE_C = (
    b"<Error><Code>InvalidRequest</Code><Message>The object was stored using a form of Server Side Encryption. "
    b"The correct parameters must be provided to retrieve the object.</Message></Error>"
)


def environment(server: FaultyServer, **more: str) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "SECRET",
        "AWS_ENDPOINT_URL_S3": server.url,
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        **more,
    }


def resolve_uri(server: FaultyServer, *uris: str, files: FileSelection | None = None, **env: str) -> ResolvedRevision:
    plan = Plan(sources=parse_sources(uris or ["s3://b/m/"]), files=files or FileSelection())
    return resolve(plan, environment=environment(server, **env))


def paths(resolved: ResolvedRevision) -> list[str]:
    return [each.path for each in resolved.objects]


def put_model(server: FaultyServer) -> FaultyServer:
    for name in ("a.tensors", "b.tensors", "c.tensors", "config.json"):
        server.put(f"b/m/{name}", b"xxxx")
    server.put("b/other/z.tensors", b"zzzz")
    return server


WHOLE = ["a.tensors", "b.tensors", "c.tensors", "config.json"]


@pytest.mark.parametrize(
    "dialect",
    [
        ListingDialect(version=1),
        ListingDialect(version=1, next_marker=True),
        ListingDialect(version=1, truncated="True"),
        ListingDialect(version=1, truncated=None),
        ListingDialect(truncated=None),
        ListingDialect(repeat=2),
        ListingDialect(ignore_prefix=True),
        ListingDialect(version=1, ignore_prefix=True, repeat=3),
    ],
)
def test_the_whole_model_is_listed_whatever_the_dialect(dialect: ListingDialect) -> None:
    with FaultyServer(page_size=2, listing=dialect) as server:
        resolved = resolve_uri(put_model(server))
        assert paths(resolved) == WHOLE
        ignored = [note for note in resolved.notes if "ignores the prefix; 1 other objects were left out" in note]
        assert bool(ignored) == dialect.ignore_prefix


@pytest.mark.parametrize(
    "dialect", [ListingDialect(key_count=1), ListingDialect(version=1, stuck=True), ListingDialect(stuck=True)]
)
def test_a_listing_that_is_not_complete_is_never_a_model(dialect: ListingDialect) -> None:
    with FaultyServer(page_size=2, listing=dialect) as server, pytest.raises(StoreUnsupported, match="not complete"):
        resolve_uri(put_model(server))


def test_a_store_that_lists_directories_only_is_refused() -> None:
    with FaultyServer(listing=ListingDialect(group=True)) as server:
        server.put("b/m/a.tensors", b"x")
        server.put("b/m/text_encoder/b.tensors", b"x")
        with pytest.raises(StoreUnsupported, match="'m/text_encoder/' in place of the keys below"):
            resolve_uri(server)


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (405, "")])
def test_a_store_that_rejects_the_second_version_is_asked_in_the_first(
    faulty_server: FaultyServer, status: int, code: str
) -> None:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    faulty_server.add_fault(Fault(status=status, body=body), when=lambda request: "list-type" in request.query)
    assert paths(resolve_uri(put_model(faulty_server))) == WHOLE


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "PathStyleRequestNotAllowed", "Path style requests are not allowed"),
        (403, "SecondLevelDomainForbidden", "Please use virtual hosted style to access."),
        (400, "PathStyleDomainForbidden", "The bucket you are attempting to access must be in the domain"),
        (403, "AccessDenied", "must be addressed using OSS third level domain"),
    ],
)
def test_a_store_that_refuses_path_style_is_asked_once_and_then_by_host(status: int, code: str, message: str) -> None:
    with FaultyServer(domain="store.localhost") as server:
        put_model(server)
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()

        def is_path_style(request: Request) -> bool:
            return request.headers["host"].startswith("store.localhost")

        server.add_fault(Fault(status=status, body=body), when=is_path_style)
        resolved = resolve_uri(server, AWS_ENDPOINT_URL_S3=f"http://store.localhost:{server.port}")
        assert paths(resolved) == WHOLE
        assert sum(map(is_path_style, server.find_requests())) == 1
        assert resolved.objects[0].target.url == f"http://b.store.localhost:{server.port}/m/a.tensors"


def test_a_refused_addressing_style_is_reported_with_what_to_set(faulty_server: FaultyServer) -> None:
    body = b"<Error><Code>PathStyleRequestNotAllowed</Code><Message>No path style here.</Message></Error>"
    put_model(faulty_server).add_fault(Fault(status=400, body=body))
    plan = Plan(sources=(S3Source(bucket="b", prefix="m/", addressing_style="path"),))  # type: ignore[arg-type]
    with pytest.raises(RequestRejected, match=r"PathStyleRequestNotAllowed: No path style here\)") as caught:
        resolve(plan, environment=environment(faulty_server))
    assert "--addressing-style virtual" in caught.value.remedy


@pytest.mark.parametrize(
    ("status", "code"),
    [(501, "NotImplemented"), (400, "InvalidArgument"), (405, "MethodNotAllowed"), (404, "NoSuchKey")],
)
def test_versions_that_the_store_only_names_are_pinned_by_etag(
    faulty_server: FaultyServer, status: int, code: str
) -> None:
    faulty_server.put("b/m/a.tensors", b"x", version_id="v1")
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    faulty_server.add_fault(Fault(status=status, body=body), when=lambda request: "versionId" in request.query)
    resolved = resolve_uri(faulty_server)
    assert "pinned by ETag only" in resolved.notes[0]
    target = resolved.objects[0].target
    assert "versionId" not in target.url
    assert target.precondition_header.startswith("If-Match")


def test_a_store_that_answers_with_another_version_than_asked_is_pinned_by_etag(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/m/a.tensors", b"x", version_id="v1")
    other = Fault(headers={"x-amz-version-id": "v9", "ETag": '"other"'})
    faulty_server.add_fault(other, when=lambda request: "versionId" in request.query)
    assert "the store names them" in resolve_uri(faulty_server).notes[0]


def test_a_pinned_plan_is_checked_by_etag_if_versions_can_not_be_asked_for(faulty_server: FaultyServer) -> None:
    faulty_server.put("b/m/a.tensors", b"x", version_id="v1")
    pins = resolve_uri(faulty_server).sources[0].objects
    body = b"<Error><Code>NotImplemented</Code><Message>m</Message></Error>"
    faulty_server.add_fault(Fault(status=501, body=body), when=lambda request: "versionId" in request.query)
    plan = Plan(sources=(S3Source(bucket="b", prefix="m/", objects=pins),))
    resolved = resolve(plan, environment=environment(faulty_server))
    assert "the store names them" in resolved.notes[0]


@pytest.mark.parametrize(
    ("status", "body", "words", "remedy"),
    [
        (400, SSE_C, "a key that its owner keeps", "without SSE-C"),
        (
            400,
            b"<Error><Code>KMS.DisabledException</Code><Message>key is disabled.</Message></Error>",
            "KMS.DisabledException: key is disabled",
            "kms:Decrypt",
        ),
        (
            403,
            b"<Error><Code>AccessDenied</Code><Message>not authorized to perform: kms:Decrypt on it</Message></Error>",
            "not authorized to perform: kms:Decrypt",
            "kms:Decrypt",
        ),
        (
            403,
            b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key here.</Message></Error>",
            "InvalidAccessKeyId: No such key here",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            400,
            b"<Error><Code>InvalidArgument</Code><Message>Credential access key has length 34</Message></Error>",
            "the access key does not exist.*Credential access key has length 34",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            401,
            b"<Error><Code>Unauthorized</Code><Message>Unauthorized</Message></Error>",
            "the access key does not exist",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            403,
            b"<Error><Code>InvalidSecurity</Code><Message>The credentials are not valid.</Message></Error>",
            "the access key does not exist",
            "AWS_ACCESS_KEY_ID",
        ),
        (
            403,
            b"<Error><Code>SignatureDoesNotMatch</Code><Message>Check your key.</Message></Error>",
            "Check your key",
            "AWS_SECRET_ACCESS_KEY",
        ),
        (
            400,
            b'{"statusCode":"400","error":"InvalidTenant","message":"tenant \\u001b[31mis paused"}',
            r"InvalidTenant: tenant  ?\[31mis paused",
            "store's message",
        ),
        (400, b"<html><head><title>Bad gateway policy</title></head></html>", "Bad gateway policy", "S3 endpoint"),
        (409, b"<Error><Code>BucketFrozen</Code><Message>Pay &amp; retry</Message></Error>", "Pay & retry", "message"),
    ],
)
def test_the_stores_own_words_and_a_remedy_that_follows_are_in_each_error(
    faulty_server: FaultyServer, status: int, body: bytes, words: str, remedy: str
) -> None:
    put_model(faulty_server).add_fault(Fault(status=status, body=body), key="b/m/a.tensors")
    with pytest.raises(TonnageError, match=words) as caught:
        resolve_uri(faulty_server)
    assert remedy in caught.value.remedy
    assert caught.value.message.startswith("s3://b/m/a.tensors: ")
    assert caught.value.message.isprintable()


def test_the_endpoint_that_the_store_names_is_in_the_error(faulty_server: FaultyServer) -> None:
    body = (
        b"<Error><Code>AccessDenied</Code><Message>The bucket must be addressed using the specified endpoint."
        b"</Message><Endpoint>oss-cn-beijing.example.com</Endpoint></Error>"
    )
    faulty_server.add_fault(Fault(status=403, body=body))
    with pytest.raises(AccessDenied, match=r"specified endpoint \(its endpoint: oss-cn-beijing\.example\.com\)"):
        resolve_uri(faulty_server)


def test_a_missing_bucket_is_reported_with_the_stores_words(faulty_server: FaultyServer) -> None:
    body = b'{"code":"TenantNotFound","message":"No such tenant"}'
    faulty_server.add_fault(Fault(status=404, body=body))
    with pytest.raises(BucketNotFound, match=r"s3://b: the bucket does not exist.*TenantNotFound: No such tenant"):
        resolve_uri(faulty_server)


def test_the_requester_pays_if_asked_to(faulty_server: FaultyServer) -> None:
    denied = Fault(status=403, body=b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
    put_model(faulty_server).add_fault(
        denied, when=lambda request: request.headers.get("x-amz-request-payer") != "requester"
    )
    with pytest.raises(AccessDenied) as caught:
        resolve_uri(faulty_server)
    assert "--requester-pays" in caught.value.remedy
    plan = Plan(sources=parse_sources(["s3://b/m/"], requester_pays=True))
    resolved = resolve(plan, environment=environment(faulty_server))
    assert paths(resolved) == WHOLE
    assert resolved.objects[0].target.requester_pays
    signed = faulty_server.find_requests()[-1].headers["authorization"]
    assert "x-amz-request-payer" in signed.partition("SignedHeaders=")[2].partition(",")[0]


@pytest.mark.parametrize(("name", "encoding"), [("config.json", "gzip"), ("config.json", "br"), ("a.tensors", "gzip")])
def test_objects_that_are_stored_compressed_are_refused(faulty_server: FaultyServer, name: str, encoding: str) -> None:
    put_model(faulty_server).put(f"b/m/{name}", b"\x1f\x8b", headers={"Content-Encoding": encoding})
    with pytest.raises(FormatUnsupported, match=f"s3://b/m/{name} is stored with Content-Encoding {encoding}"):
        resolve_uri(faulty_server)
    left = resolve_uri(faulty_server, files=FileSelection(exclude=(name,)))
    assert name not in paths(left)


def test_an_encoding_that_changes_no_bytes_is_accepted(faulty_server: FaultyServer) -> None:
    put_model(faulty_server).put("b/m/config.json", b"{}", headers={"Content-Encoding": "aws-chunked"})
    assert paths(resolve_uri(faulty_server)) == WHOLE


def test_files_that_no_pattern_matches_are_named(faulty_server: FaultyServer) -> None:
    for name in ("modeling_x.py", "qwen.tiktoken", "README.md", "a.bin", "b.bin", "c.bin"):
        put_model(faulty_server).put(f"b/m/{name}", b"x")
    notes = resolve_uri(faulty_server).notes
    assert len(notes) == 1
    assert notes[0] == (
        "Left out, because no pattern matches: modeling_x.py, qwen.tiktoken, README.md, a.bin, b.bin and 1 more; the "
        "model's own code or tokenizer may need them. To load them, use --include (spec.files.companions)."
    )
    excluded = resolve_uri(faulty_server, files=FileSelection(exclude=("*.py", "*.tiktoken", "*.bin", "*.md")))
    assert excluded.notes == ()


@pytest.mark.parametrize("prefix", ["llama-3.1-8b", "Qwen2.5-7B", "v1.0", "tokenizer-v2", "m"])
def test_a_prefix_needs_no_slash_at_its_end(faulty_server: FaultyServer, prefix: str) -> None:
    faulty_server.put(f"b/{prefix}/a.tensors", b"x")
    faulty_server.put(f"b/{prefix}x/other.tensors", b"x")
    resolved = resolve_uri(faulty_server, f"s3://b/{prefix}")
    assert paths(resolved) == ["a.tensors"]
    pinned = Plan(sources=(S3Source(bucket="b", prefix=prefix, objects=resolved.sources[0].objects),))
    assert resolve(pinned, environment=environment(faulty_server)).digest == resolved.digest


@pytest.mark.parametrize("name", ["modeling_x.py", "tokenizer", "LICENSE", "qwen.tiktoken"])
def test_a_uri_may_name_an_object_of_any_name(faulty_server: FaultyServer, name: str) -> None:
    put_model(faulty_server).put(f"b/m/{name}", b"x")
    resolved = resolve_uri(faulty_server, "s3://b/m/a.tensors", f"s3://b/m/{name}")
    assert sorted(paths(resolved)) == sorted(["a.tensors", name])
    source = S3Source(bucket="b", prefix=f"m/{name}", objects=resolved.sources[1].objects)
    pinned = Plan(sources=(S3Source(bucket="b", keys=("m/a.tensors",)), source))
    assert resolve(pinned, environment=environment(faulty_server)).digest == resolved.digest


def test_an_object_can_be_named_without_the_permission_to_list(faulty_server: FaultyServer) -> None:
    denied = Fault(status=403, body=b"<Error><Code>AccessDenied</Code><Message>No listing</Message></Error>")
    put_model(faulty_server).put("b/m/model", b"x")
    faulty_server.add_fault(denied, when=lambda request: "prefix" in request.query)
    assert paths(resolve_uri(faulty_server, "s3://b/m/a.tensors", "s3://b/m/model")) == ["a.tensors", "model"]
    with pytest.raises(AccessDenied, match="No listing"):
        resolve_uri(faulty_server, "s3://b/m/nothing")


def test_a_name_that_is_neither_prefix_nor_object_is_reported_as_both(faulty_server: FaultyServer) -> None:
    with pytest.raises(ObjectNotFound, match="s3://b/nope: there is neither an object of this name nor one below it"):
        resolve_uri(put_model(faulty_server), "s3://b/nope")


def test_retries_of_listing_and_resolving_are_counted(faulty_server: FaultyServer) -> None:
    put_model(faulty_server).add_fault(slow_down(), times=2)
    faulty_server.add_fault(Fault(status=500), method="HEAD", times=3)
    retries: list[None] = []
    plan = Plan(sources=parse_sources(["s3://b/m/"]))
    resolve(plan, environment=environment(faulty_server), on_retry=lambda: retries.append(None))
    assert len(retries) == 5


def test_an_unreachable_endpoint_is_named_with_its_port(faulty_server: FaultyServer) -> None:
    port = faulty_server.port
    faulty_server.close()
    with pytest.raises(EndpointUnreachable, match=rf"can't connect to its server \(127\.0\.0\.1:{port}, curl 7\)"):
        resolve_uri(faulty_server)


def test_a_host_name_of_other_than_ascii_characters_is_signed_as_it_is_sent(faulty_server: FaultyServer) -> None:
    put_model(faulty_server)
    resolve_uri(faulty_server, AWS_ENDPOINT_URL_S3=f"http://bücher.localhost:{faulty_server.port}")
    assert faulty_server.find_requests()[0].headers["host"] == f"xn--bcher-kva.localhost:{faulty_server.port}"


def resolve_urls(*urls: str) -> ResolvedRevision:
    return resolve(Plan(sources=(HttpSource(urls=urls),)), environment={})


def test_a_file_whose_name_is_in_the_query_is_named_by_the_fragment(faulty_server: FaultyServer) -> None:
    faulty_server.put("download", b"xxxx")
    url = f"{faulty_server.url}/download?path=m/model.tensors"
    with pytest.raises(NoTensorFiles) as caught:
        resolve_urls(url)
    assert "#x.tensors" in caught.value.remedy
    resolved = resolve_urls(f"{url}&n=1#one.tensors", f"{url}&n=2#two.tensors")
    assert paths(resolved) == ["one.tensors", "two.tensors"]
    assert [each.pin.key for each in resolved.objects] == [
        f"{faulty_server.url}/download#one.tensors",
        f"{faulty_server.url}/download#two.tensors",
    ]
    assert {request.raw_query for request in faulty_server.find_requests()} == {
        "path=m/model.tensors&n=1",
        "path=m/model.tensors&n=2",
    }


def test_a_login_page_in_place_of_a_companion_is_refused(faulty_server: FaultyServer) -> None:
    faulty_server.put("a.tensors", b"xxxx")
    faulty_server.put("config.json", b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(AccessDenied, match=r"/config\.json: the server sends a web page"):
        resolve_urls(f"{faulty_server.url}/a.tensors", f"{faulty_server.url}/config.json")
