"""The half of Tonnage that talks to the Kubernetes API: resources, Jobs, injection, status.

It reads no Secret, opens no bucket and touches no weight: that is the loader's work, in pods of the tenants' own
namespaces. Of the loader, only ``tonnage.contract`` and ``tonnage.errors`` are imported here.

``api`` is the vocabulary, ``domain`` decides (pure functions), ``kube`` acts, ``controller`` and ``webhook`` wire.
"""

from __future__ import annotations

from tonnage._version import __version__

__all__ = ["__version__"]
