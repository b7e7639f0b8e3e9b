"""Claims on a folder of the node's own disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage_operator.api import names

if TYPE_CHECKING:
    from cluster_support.site import Site


def make_claim(site: Site, namespace: str) -> None:
    """Makes a claim and the local volume that it gets."""
    path = f"/var/lib/volumes/{namespace}"
    (site.root / path.lstrip("/")).mkdir(parents=True)
    term = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [site.node]}
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        **common,
        "capacity": {"storage": "1Gi"},
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": "weights", "namespace": namespace},
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
    }
    site.api.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume})
    claim = {**common, "volumeName": namespace, "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "weights", "namespace": namespace}
    site.api.create({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})
    name = "PersistentVolumeClaim"
    site.api.until(name, "weights", namespace, lambda each: each["status"]["phase"] == "Bound", what="its volume")
