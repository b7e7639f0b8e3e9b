"""The operator of Tonnage: custom resources, load Jobs, injection into pods, and status.

It reads no Secrets, buckets or weights; the loader does, in pods of the tenants' own namespaces. From the loader's
package it imports only ``tonnage.contract`` and ``tonnage.errors``.

``api`` defines the resources, ``domain`` decides (pure functions), ``kube`` is the API client, and ``controller`` and
``webhook`` are the two processes.
"""

from __future__ import annotations

from tonnage._version import __version__

__all__ = ["__version__"]
