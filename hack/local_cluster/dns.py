"""The cluster's DNS for Services: CoreDNS on the node's address, which watches the API server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from local_cluster import network

if TYPE_CHECKING:
    from pathlib import Path

USER = "system:coredns"
_READY_PORT = 8181


def corefile(kubeconfig: Path, address: str) -> str:
    """Returns CoreDNS's configuration. It returns NXDOMAIN immediately for names outside the cluster."""
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
    """Returns the URL that returns 200 when the server on ``address`` has synchronized the Services."""
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
"""The permissions of CoreDNS."""
