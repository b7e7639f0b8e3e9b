"""Redaction of secrets."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.cli.redaction import redact

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s3cr3t/key+x",
    "AWS_SESSION_TOKEN": "tok==",
}


def test_values_of_secret_variables_are_hidden() -> None:
    assert "s3cr3t" not in redact("denied for s3cr3t/key+x", ENVIRONMENT)


def test_only_queries_and_users_of_urls_are_hidden() -> None:
    shown = redact("GET https://me:pw@h/b/x.tensors?X-Amz-Signature=abc&X=1 failed", {})
    assert shown == "GET https://h/b/x.tensors?[hidden] failed"


def test_signatures_outside_of_urls_are_hidden() -> None:
    assert "deadbeef" not in redact("X-Amz-Signature=deadbeef, Authorization: deadbeef", {})


def test_short_values_and_ordinary_text_are_kept() -> None:
    text = "s3://models/a?b.tensors: tensor 'x' at offset 12 has tok== problems"
    assert redact(text, ENVIRONMENT) == text


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40), st.text(alphabet="abcXYZ019+/=", min_size=8, max_size=40), st.text(max_size=40))
def test_a_secret_is_removed_wherever_it_is(before: str, secret: str, after: str) -> None:
    assert secret not in redact(before + secret + after, {"AWS_SECRET_ACCESS_KEY": secret})
