"""URIs of the command line as sources."""

from __future__ import annotations

import pytest

from tonnage.contract import AddressingStyle, HttpSource, S3Source
from tonnage.errors import InvalidPlan
from tonnage.source.source_uri import parse_sources

PRESIGNED = "https://h/b/a.tensors?X-Amz-Signature=SECRET"


@pytest.mark.parametrize(
    ("text", "prefix", "keys"),
    [
        ("s3://b", "", None),
        ("s3://b/", "", None),
        ("s3://b/llama/v7/", "llama/v7/", None),
        ("s3://b/llama/v7", "llama/v7", None),
        ("s3://b/llama-3.1-8b", "llama-3.1-8b", None),
        ("s3://b/m/Qwen2.5-7B", "m/Qwen2.5-7B", None),
        ("s3://b/v1.0", "v1.0", None),
        ("s3://b/llama/a.tensors", None, ("llama/a.tensors",)),
        ("s3://b/llama/config.json", None, ("llama/config.json",)),
        ("s3://b/tokenizer-v2", "tokenizer-v2", None),
        ("S3://b/odd?key#with%20[x].tensors", None, ("odd?key#with%20[x].tensors",)),
    ],
)
def test_a_uri_is_a_prefix_or_a_key(text: str, prefix: str | None, keys: tuple[str, ...] | None) -> None:
    assert parse_sources([text]) == (S3Source(bucket="b", prefix=prefix, keys=keys),)


def test_keys_of_one_bucket_are_one_source_and_urls_another() -> None:
    sources = parse_sources(["s3://b/x.tensors", PRESIGNED, "s3://b/y.tensors", "s3://c/m/", "http://h/z.tensors"])
    assert sources == (
        S3Source(bucket="b", keys=("x.tensors", "y.tensors")),
        HttpSource(urls=(PRESIGNED, "http://h/z.tensors")),
        S3Source(bucket="c", prefix="m/"),
    )


def test_options_apply_to_every_source() -> None:
    s3, http = parse_sources(
        ["s3://b", "https://h/x"],
        endpoint="http://h:1/",
        region="r",
        addressing_style=AddressingStyle.VIRTUAL,
        ca_bundle="/ca",
        anonymous=True,
    )
    assert isinstance(s3, S3Source)
    assert (s3.endpoint, s3.region, s3.addressing_style, s3.anonymous) == ("http://h:1", "r", "virtual", True)
    assert s3.ca_bundle == http.ca_bundle == "/ca"


@pytest.mark.parametrize(
    "texts",
    [[], ["b/x"], ["s3://"], ["s3:///x"], ["s3://b?x/y"], ["ftp://h/x"], ["https://"], ["s3://b/x.tensors"] * 2],
)
def test_invalid_uris_are_rejected(texts: list[str]) -> None:
    with pytest.raises(InvalidPlan):
        parse_sources(texts)


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("https://huggingface.co/org/m", "Pass hf://org/m."),
        ("https://hf.co/org/m/", "Pass hf://org/m."),
        ("https://huggingface.co/org/m/tree/refs%2Fpr%2F3", "Pass hf://org/m@refs/pr/3."),
        ("https://huggingface.co/org/m/blob/main/model.safetensors", "Pass hf://org/m@main."),
        ("https://bucket.s3.amazonaws.com/m/?X-Amz-Signature=SECRET", "pass s3://bucket/prefix/"),
        ("http://files.example/models/", "pass s3://bucket/prefix/"),
    ],
)
def test_a_url_that_is_no_file_is_refused_with_the_right_way(text: str, way: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        parse_sources([text])
    assert way in caught.value.remedy
    assert "SECRET" not in caught.value.message


@pytest.mark.parametrize(
    "text",
    ["https://huggingface.co/org/m/resolve/main/model.safetensors", "https://h/get/?path=x#x.tensors", "https://h/o/m"],
)
def test_a_url_of_a_file_is_a_source(text: str) -> None:
    assert parse_sources([text]) == (HttpSource(urls=(text,)),)


def test_errors_do_not_repeat_secrets() -> None:
    with pytest.raises(InvalidPlan) as caught:
        parse_sources([PRESIGNED, PRESIGNED])
    assert "SECRET" not in str(caught.value)
