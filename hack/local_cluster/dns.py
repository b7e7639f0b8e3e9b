"""Names of Services for pods: CoreDNS on the node's address, with the API server as its source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local_cluster import network

if TYPE_CHECKING:
    from pathlib import Path

USER = "system:coredns"
_READY_PORT = 8181


def corefile(kubeconfig: Path, address: str) -> str:
    """Returns the server's configuration. A name outside of the cluster does not exist, and pods learn so at once."""
    return f"""\
.:{network.DNS_PORT} {{
    bind {address}
    errors
    ready {address}:{_READY_PORT}
    kubernetes {network.DOMAIN} {{
        kubeconfig {kubeconfig}
        ttl 2
    }}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""


def ready_url(address: str) -> str:
    """Returns the URL that answers 200 as soon as the server on ``address`` knows the Services."""
    return f"http://{address}:{_READY_PORT}/ready"


RBAC_MANIFESTS = f"""\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: "{USER}"}}
rules:
- {{apiGroups: [""], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: "{USER}"}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: "{USER}"}}
subjects:
- {{apiGroup: rbac.authorization.k8s.io, kind: User, name: "{USER}"}}
"""
"""What the server may read, as manifests."""
