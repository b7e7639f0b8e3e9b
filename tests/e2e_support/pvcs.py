"""PersistentVolumeClaims on local volumes of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names

if TYPE_CHECKING:
    from e2e_support.e2e_cluster import E2ECluster


def create_pvc(e2e: E2ECluster, namespace: str, pvc: dict[str, Any]) -> None:
    """Creates a claim with a local volume, and waits until it is bound."""
    path = f"/var/lib/volumes/{namespace}"
    (e2e.node_root / path.lstrip("/")).mkdir(parents=True)
    name, spec = pvc["metadata"]["name"], pvc["spec"]
    term = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [e2e.node]}
    pv_spec = {
        "accessModes": spec["accessModes"],
        "capacity": spec["resources"]["requests"],
        "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": name, "namespace": namespace},
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
    }
    e2e.api.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": pv_spec})
    # The cluster has no storage class to provision a volume.
    spec |= {"storageClassName": "", "volumeName": namespace}
    e2e.api.create({**pvc, "metadata": {"name": name, "namespace": namespace}})
    kind = "PersistentVolumeClaim"
    e2e.api.wait_for(kind, name, namespace, lambda each: each["status"]["phase"] == "Bound", description="its volume")
