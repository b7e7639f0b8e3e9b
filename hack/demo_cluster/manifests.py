"""The manifests that the demo applies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from e2e_support.pods import server_pod
from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster

NAMESPACE = "demo"
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.yaml"


def model_weights(site: E2ECluster, version: str) -> str:
    """Returns the reader's Secret and the ``ModelWeights``."""
    metadata = {"name": "s3-reader", "namespace": NAMESPACE}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": site.reader_credentials}
    source = {"s3": {"bucket": site.bucket, "prefix": f"demo/{version}/", "endpoint": site.storage.endpoint}}
    weights = {
        "apiVersion": names.API_VERSION,
        "kind": names.MODEL_WEIGHTS_KIND,
        "metadata": {"name": "demo", "namespace": NAMESPACE},
        "spec": {
            "source": source,
            "credentials": {"secretRef": {"name": "s3-reader"}},
            "placement": {"prewarm": "AllMatching"},
        },
    }
    return yaml.safe_dump_all([secret, weights], sort_keys=False)


def deployment(site: E2ECluster, replicas: int) -> str:
    """Returns a Deployment of servers that verify their model and then wait."""
    pod = server_pod("", NAMESPACE, site.images.loader, annotations={names.MODEL: "demo"})
    template = {
        "metadata": {"labels": {"app": "server"}, "annotations": pod["metadata"]["annotations"]},
        "spec": pod["spec"],
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server", "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "server"}}, "template": template},
    }
    return yaml.safe_dump(body, sort_keys=False)


def quickstart(site: E2ECluster, prefix: str) -> str:
    """Returns examples/quickstart.yaml with this cluster's bucket and keys, and an image that the node has."""
    keys = site.reader_credentials
    edits = {
        "edit-access-key": keys["AWS_ACCESS_KEY_ID"],
        "edit-secret-key": keys["AWS_SECRET_ACCESS_KEY"],
        "edit-bucket": site.bucket,
        "edit-prefix/": prefix,
        "http://edit-endpoint:8333": site.storage.endpoint,
        "python:3.11-slim": site.images.loader,
    }
    text = QUICKSTART.read_text()
    for before, after in edits.items():
        if text.count(before) != 1:
            raise ValueError(f"{QUICKSTART.name} must contain {before} exactly once.")
        text = text.replace(before, after)
    return text
