"""Claims on a folder of the node's own disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tonnage_operator.api import names

if TYPE_CHECKING:
    from cluster_support.site import Site


def make_claim(site: Site, namespace: str, claim: dict[str, Any]) -> None:
    """Applies a claim in a namespace, with a local volume that it gets."""
    path = f"/var/lib/volumes/{namespace}"
    (site.root / path.lstrip("/")).mkdir(parents=True)
    name, spec = claim["metadata"]["name"], claim["spec"]
    term = {"key": names.HOSTNAME_LABEL, "operator": "In", "values": [site.node]}
    volume = {
        "accessModes": spec["accessModes"],
        "capacity": spec["resources"]["requests"],
        "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"name": name, "namespace": namespace},
        "local": {"path": path},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}},
    }
    site.api.create({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume})
    # There is no storage class here, of which a claim would get the default one.
    spec |= {"storageClassName": "", "volumeName": namespace}
    site.api.create({**claim, "metadata": {"name": name, "namespace": namespace}})
    kind = "PersistentVolumeClaim"
    site.api.until(kind, name, namespace, lambda each: each["status"]["phase"] == "Bound", what="its volume")
