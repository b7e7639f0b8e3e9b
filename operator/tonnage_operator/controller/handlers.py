"""The controller's kopf handlers: start, log in, watch, stop.

kopf watches all kinds. Each event goes into a store; the store's event handlers enqueue the keys that it concerns, and
work queues reconcile these keys from the stores (see ``app``). So handlers keep no state: no daemons, which kopf does
not start for objects that are being deleted already, and no finalizer of kopf's.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import kopf

from tonnage_operator.api import names
from tonnage_operator.controller.lists import SELECTORS
from tonnage_operator.kube.resources import JOBS, MODEL_WEIGHTS, NODE_CACHES, NODES, PODS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tonnage_operator.controller.memo import ControllerMemo

REGISTRY: Final = kopf.OperatorRegistry()

_LOGIN_LIFETIME: Final = timedelta(minutes=10)
"""How long kopf uses credentials before it asks for them again; service account tokens last an hour."""


class _NoDiffBase(kopf.DiffBaseStorage):
    """No last-handled state: no handler needs it, and building it copies each object twice."""

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:  # noqa: ARG002
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:  # noqa: ARG002
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Stores nothing."""


@kopf.on.startup(registry=REGISTRY)
async def start(memo: ControllerMemo, settings: kopf.OperatorSettings, **_: Any) -> None:  # noqa: ANN401
    configure(settings)
    await memo.sync()


@kopf.on.login(registry=REGISTRY)
async def login(memo: ControllerMemo, **_: Any) -> kopf.ConnectionInfo:  # noqa: ANN401
    await memo.client_config.refresh(rejected=True)
    configuration = memo.client_config.configuration
    scheme, _space, token = configuration.api_key.get("BearerToken", "").partition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        proxy_url=configuration.proxy,
        expiration=datetime.now(UTC) + _LOGIN_LIFETIME,
    )


@kopf.on.event(names.GROUP, names.VERSION, names.MODEL_WEIGHTS_PLURAL, registry=REGISTRY)
async def on_model_weights(event: kopf.RawEvent, memo: ControllerMemo, **_: Any) -> None:  # noqa: ANN401
    memo.apply(MODEL_WEIGHTS, event["type"], dict(event["object"]))


@kopf.on.event(names.GROUP, names.VERSION, names.NODE_CACHE_PLURAL, registry=REGISTRY)
async def on_node_cache(event: kopf.RawEvent, memo: ControllerMemo, **_: Any) -> None:  # noqa: ANN401
    memo.apply(NODE_CACHES, event["type"], dict(event["object"]))


@kopf.on.event("v1", "nodes", registry=REGISTRY)
async def on_node(event: kopf.RawEvent, memo: ControllerMemo, **_: Any) -> None:  # noqa: ANN401
    memo.apply(NODES, event["type"], dict(event["object"]))


@kopf.on.event("batch", "v1", "jobs", registry=REGISTRY)
async def on_job(event: kopf.RawEvent, memo: ControllerMemo, **_: Any) -> None:  # noqa: ANN401
    memo.apply(JOBS, event["type"], dict(event["object"]))


@kopf.on.event("v1", "pods", registry=REGISTRY)
async def on_pod(event: kopf.RawEvent, memo: ControllerMemo, **_: Any) -> None:  # noqa: ANN401
    memo.apply(PODS, event["type"], dict(event["object"]))


@kopf.on.cleanup(registry=REGISTRY)
async def stop(memo: ControllerMemo, **_: Any) -> None:  # noqa: ANN401
    memo.synced.clear()


def configure(settings: kopf.OperatorSettings) -> None:
    """Sets kopf up for watching: server-side selectors, no writes of its own, streams that notice a dead server."""
    for resource, selector in SELECTORS.items():
        if selector:
            group = (resource.group,) if resource.group else ()
            settings.watching.label_selectors[(*group, resource.version, resource.plural)] = selector
    # kopf removes a finalizer of this name where no handler needs one. Ours has another name.
    settings.persistence.finalizer = f"{names.GROUP}/not-used"
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.queueing.idle_timeout = 1.0
