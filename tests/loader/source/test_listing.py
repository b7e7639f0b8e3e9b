"""Pages of a listing, and whether a listing is complete."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tonnage.errors import StoreUnsupported
from tonnage.source.listing import FIRST_PAGE, MAX_IDLE_PAGES, Cursor, Listing, Page, list_query, parse_page


def page(inner: str) -> Page:
    return parse_page(document(inner), label="s3://b")


def document(inner: str) -> bytes:
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"{inner}</ListBucketResult>"
    ).encode()


def contents(*keys: str) -> str:
    return "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)


def test_a_query_is_sorted_and_strictly_encoded() -> None:
    query = list_query("a b/+é", cursor=Cursor(token="x=/+"))
    assert query == (
        "continuation-token=x%3D%2F%2B&encoding-type=url&list-type=2&max-keys=1000&prefix=a%20b%2F%2B%C3%A9"
    )


def test_a_marker_is_for_list_objects() -> None:
    assert list_query("p/", cursor=Cursor(marker="p/k")) == "encoding-type=url&marker=p%2Fk&max-keys=1000&prefix=p%2F"
    assert list_query("p/", cursor=Cursor(marker="")) == "encoding-type=url&max-keys=1000&prefix=p%2F"


def test_a_page_gives_keys_sizes_and_the_token() -> None:
    found = page(
        "<IsTruncated>true</IsTruncated><NextContinuationToken>t&amp;k</NextContinuationToken>"
        "<EncodingType>url</EncodingType><Prefix>x</Prefix>"
        "<Contents><Key>a+b%2Fc%0A</Key><Size>12</Size><Owner><ID>Key</ID></Owner></Contents>"
        "<Contents><Key>d</Key><Size>0</Size></Contents>"
    )
    assert found.objects == (("a b/c\n", 12), ("d", 0))
    assert (found.truncated, found.token) == (True, "t&k")


def test_a_marker_is_decoded_as_keys_are() -> None:
    found = page("<IsTruncated>TRUE</IsTruncated><EncodingType>url</EncodingType><NextMarker>a+b%2Fc</NextMarker>")
    assert (found.truncated, found.next_marker) == (True, "a b/c")


def test_keys_are_not_decoded_if_the_server_did_not_encode_them() -> None:
    found = page("<IsTruncated>false</IsTruncated><Contents><Key>a+b%2F&lt;</Key><Size>1</Size></Contents>")
    assert found.objects == (("a+b%2F<", 1),)


def test_a_token_on_the_last_page_is_not_followed() -> None:
    last = page(f"<IsTruncated>false</IsTruncated><NextContinuationToken>t</NextContinuationToken>{contents('a')}")
    assert Listing("", label="s3://b").add(last, FIRST_PAGE) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"<html><body>x</body></html>",
        b"<a>",
        document("<Contents><Key>k</Key><Size>x</Size></Contents>"),
        document("<Contents><Size>1</Size></Contents>"),
        document("<Contents><Key>k</Key></Contents>"),
        document("<KeyCount>many</KeyCount>"),
    ],
)
def test_a_body_that_is_not_a_listing_means_no_s3_server(body: bytes) -> None:
    with pytest.raises(StoreUnsupported, match="s3://b: the response is not an S3 listing"):
        parse_page(body, label="s3://b")


def test_an_error_in_place_of_a_listing_is_quoted() -> None:
    body = b"<Error><Code>InternalError</Code><Message>We encountered an internal error</Message></Error>"
    with pytest.raises(StoreUnsupported, match=r"\(InternalError: We encountered an internal error\)"):
        parse_page(body, label="s3://b")


@pytest.mark.parametrize(
    ("inner", "following"),
    [
        (f"<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>{contents('a')}", "token"),
        (f"<IsTruncated>true</IsTruncated>{contents('a')}", "marker"),
        (f"<IsTruncated> True </IsTruncated><NextMarker>a</NextMarker>{contents('a')}", "marker"),
        (f"<IsTruncated>1</IsTruncated>{contents('a')}", "marker"),
        (contents("a"), "marker"),
        (f"<NextContinuationToken>t</NextContinuationToken>{contents('a')}", "token"),
        ("<NextContinuationToken>t</NextContinuationToken>", "token"),
        (f"<IsTruncated>false</IsTruncated>{contents('a')}", None),
        ("", None),
    ],
)
def test_only_a_page_that_is_marked_so_is_the_last(inner: str, following: str | None) -> None:
    cursor = Listing("", label="s3://b").add(page(inner), FIRST_PAGE)
    expected = {"token": Cursor(token="t"), "marker": Cursor(marker="a"), None: None}
    assert cursor == expected[following]


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        (f"<IsTruncated>false</IsTruncated><KeyCount>3</KeyCount>{contents('a', 'b')}", "announces 3 keys and has 2"),
        ("<IsTruncated>false</IsTruncated><CommonPrefixes><Prefix>sub/</Prefix></CommonPrefixes>", "prefix 'sub/'"),
        ("<IsTruncated>true</IsTruncated>", "the next page has none"),
    ],
)
def test_a_page_that_leaves_keys_out_is_refused(inner: str, words: str) -> None:
    with pytest.raises(StoreUnsupported, match=words):
        Listing("", label="s3://b").add(page(inner), FIRST_PAGE)


@pytest.mark.parametrize(
    "cursors", [[FIRST_PAGE, Cursor(marker="b")], [FIRST_PAGE, Cursor(token="t")]], ids=["marker", "token"]
)
def test_a_listing_that_does_not_advance_is_refused(cursors: list[Cursor]) -> None:
    token = "<NextContinuationToken>t</NextContinuationToken>" if cursors[1].token else ""
    listing = Listing("", label="s3://b")
    same = page(f"<IsTruncated>true</IsTruncated>{token}{contents('a', 'b')}")
    listing.add(same, cursors[0])
    with pytest.raises(StoreUnsupported, match="announces more keys"):
        listing.add(same, cursors[1])


def test_empty_pages_are_followed_but_not_for_ever() -> None:
    listing = Listing("", label="s3://b")
    for number in range(MAX_IDLE_PAGES):
        listing.add(Page((), truncated=True, token=f"t{number}"), Cursor(token=f"t{number - 1}"))
    with pytest.raises(StoreUnsupported, match="has none"):
        listing.add(Page((), truncated=True, token="last"), FIRST_PAGE)


@given(st.lists(st.text(alphabet="abc/", min_size=1, max_size=4), max_size=30), st.integers(1, 7))
def test_a_listing_has_each_key_below_the_prefix_once(names: list[str], size: int) -> None:
    listing = Listing("a", label="s3://b")
    inner = [contents(*names[at : at + size]) for at in range(0, len(names), size)] or [""]
    for number, each in enumerate(inner):
        last = number == len(inner) - 1
        token = f"<NextContinuationToken>t{number}</NextContinuationToken>"
        flags = "<IsTruncated>false</IsTruncated>" if last else f"<IsTruncated>true</IsTruncated>{token}"
        listing.add(page(flags + each), Cursor(token=f"t{number - 1}"))
    assert listing.keys == list(dict.fromkeys(name for name in names if name.startswith("a")))
    assert sorted(listing.outside) == sorted({name for name in names if not name.startswith("a")})
