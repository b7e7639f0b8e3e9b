"""Redaction of secrets."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tonnage.cli.invocation import Invocation
from tonnage.cli.redaction import redact
from tonnage.cli.signals import Cancellation
from tonnage.contract import termination_message
from tonnage.errors import EndpointUnreachable
from tonnage.source import error_classification

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


@pytest.mark.parametrize(
    "word", ["secretkey", "secret_key", "secret-access-key", "AccessKey", "token_value", "db-password"]
)
@pytest.mark.parametrize("between", ["=", ": ", " = "])
def test_the_text_of_a_server_is_repeated_without_values_of_secrets(word: str, between: str) -> None:
    assert "zzz" not in error_classification.redact(f"bad request: {word}{between}zzz")


HOSTILE = "\x1b]0;pwned\x07\x1b[2J\r\nforged line \u202egnp.exe\u2066\x9b31m"


def test_text_from_outside_controls_neither_terminals_nor_the_direction_of_text() -> None:
    error = EndpointUnreachable(f"s3://b/k: {HOSTILE}")
    report = Invocation(["load"], {}, Cancellation()).failure_report(error)
    for text in (error.message, str(error.message), report.message, termination_message(report).decode()):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "\n" not in error.message
    assert r"\u202egnp.exe" in error.message
