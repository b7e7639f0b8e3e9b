"""Which Secrets and ServiceAccounts of a ``ModelWeights`` need consent, and which rights are enough."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operator_support import objects
from tonnage_operator.domain.admission.consent import (
    CREATE_PODS,
    InvalidReferences,
    Reference,
    Right,
    access_review,
    references_to_check,
    sufficient_rights,
)

SECRET, ACCOUNT = Reference("secrets", "reader"), Reference("serviceaccounts", "trainer")
BY_SECRET = {"secretRef": {"name": "reader"}}
BY_ACCOUNT = {"serviceAccountName": "trainer"}
KEY_OF_SECRET = {"secretKeyRef": {"name": "reader", "key": "ca.crt"}}


def _body(source: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"spec": {"source": source or objects.SOURCE, **spec}}


@pytest.mark.parametrize(
    ("body", "references"),
    [
        (_body(), ()),
        (_body(credentials={"anonymous": {}}), ()),
        (_body(credentials=BY_SECRET), (SECRET,)),
        (_body(credentials=BY_ACCOUNT), (ACCOUNT,)),
        (_body({"http": {"urlsFrom": {"name": "reader", "key": "urls"}}}), (SECRET,)),
        (_body({"http": {"urls": ["https://x/y"], "caBundle": KEY_OF_SECRET}}), (SECRET,)),
        (_body({"hub": {"repo": "a/b"}}, credentials=BY_SECRET), (SECRET,)),
        (_body({"hub": {"repo": "a/b", "caBundle": KEY_OF_SECRET}}), (SECRET,)),
        (
            _body({"s3": {"bucket": "models", "prefix": "", "caBundle": KEY_OF_SECRET}}, credentials=BY_ACCOUNT),
            (SECRET, ACCOUNT),
        ),
        (_body({"s3": {"bucket": "models", "caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}}}}), ()),
    ],
)
def test_every_secret_and_account_of_a_new_object_needs_consent(
    body: dict[str, Any], references: tuple[Reference, ...]
) -> None:
    assert references_to_check(body, None) == references


def test_an_update_needs_consent_if_source_or_credentials_change() -> None:
    before = _body(credentials=BY_SECRET)
    assert references_to_check(_body(credentials=BY_SECRET, suspend=True), before) == ()
    other_source = objects.deep_merge(objects.SOURCE, {"s3": {"endpoint": "https://elsewhere"}})
    assert references_to_check(_body(other_source, credentials=BY_SECRET), before) == (SECRET,)
    assert references_to_check(_body(credentials=BY_ACCOUNT), before) == (ACCOUNT,)
    assert references_to_check(_body(), before) == ()


def test_the_right_to_read_a_secret_or_to_use_an_object_is_enough() -> None:
    assert sufficient_rights(SECRET) == (Right("get", "secrets", "reader"), Right("use", "secrets", "reader"))
    assert sufficient_rights(ACCOUNT) == (Right("use", "serviceaccounts", "trainer"),)


def test_a_review_asks_about_the_author_in_the_namespace() -> None:
    user = {"username": "ann", "uid": "7", "groups": ["team"], "extra": {"scopes": ["x"]}, "other": 1}
    assert access_review(user, "serving", Right("get", "secrets", "reader"))["spec"] == {
        "user": "ann",
        "uid": "7",
        "groups": ["team"],
        "extra": {"scopes": ["x"]},
        "resourceAttributes": {
            "namespace": "serving", "verb": "get", "group": "", "resource": "secrets", "name": "reader",
        },
    }  # fmt: skip
    assert "name" not in access_review({}, "serving", CREATE_PODS)["spec"]["resourceAttributes"]


@given(
    st.recursive(st.none() | st.text(), lambda each: st.lists(each) | st.dictionaries(st.text(), each)),
    st.sampled_from(["spec", "source", "credentials"]),
)
def test_an_object_of_another_schema_is_named_and_never_allowed_by_an_error(content: Any, part: str) -> None:
    body = {"spec": content} if part == "spec" else {"spec": {part: content}}
    with contextlib.suppress(InvalidReferences):
        assert isinstance(references_to_check(body, None), tuple)
