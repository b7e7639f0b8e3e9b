"""The chart's configuration of the webhook for ``ModelWeights``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chart_support.helm import find_one
from operator_support.webhook_thread import consent_configuration

if TYPE_CHECKING:
    from chart_support.helm import Helm

OF_THE_CLUSTER = ("clientConfig",)


def _webhook(configuration: dict[str, Any]) -> dict[str, Any]:
    (webhook,) = configuration["webhooks"]
    expressions = {each["name"]: " ".join(each["expression"].split()) for each in webhook["matchConditions"]}
    return {
        **{key: value for key, value in webhook.items() if key not in OF_THE_CLUSTER},
        "matchConditions": expressions,
    }


def test_it_is_the_one_that_the_tests_of_the_webhook_use(helm: Helm) -> None:
    rendered = find_one(helm.template(), "ValidatingWebhookConfiguration")
    assert _webhook(rendered) == _webhook(consent_configuration("https://x", b""))
    injecting = find_one(helm.template(), "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]
    client = rendered["webhooks"][0]["clientConfig"]
    assert client["caBundle"]
    assert client["service"] == {
        **injecting["service"],
        "path": injecting["service"]["path"].replace("/inject/", "/consent/"),
    }


def test_it_can_be_left_out(helm: Helm) -> None:
    kinds = {body["kind"] for body in helm.template({"webhook": {"consent": False}})}
    assert "ValidatingWebhookConfiguration" not in kinds
