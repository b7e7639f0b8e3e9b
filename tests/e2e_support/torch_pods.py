"""Pods with PyTorch: the test environment's own packages, mounted into the loader's image beside its Python."""

from __future__ import annotations

import sys
import sysconfig
from typing import Any

import pytest

from e2e_support.pods import PYTHON, RESTRICTED_SECURITY_CONTEXT

Object = dict[str, Any]

IMAGE_PYTHON = (3, 11)
"""Of Debian 12, which the image is made of."""
PACKAGES_PATH = "/site"


def skip_unless_same_python() -> None:
    """Skips where the image's Python can't import this environment's compiled packages."""
    if sys.version_info[:2] != IMAGE_PYTHON:
        pytest.skip(f"PyTorch is mounted from this environment, whose Python is not {'.'.join(map(str, IMAGE_PYTHON))}")


def mount_site_packages(spec: Object, container: Object) -> None:
    """Changes a pod's container so that it imports what this environment has, torch and transformers among it."""
    spec.setdefault("volumes", []).append({"name": "packages", "hostPath": {"path": sysconfig.get_path("purelib")}})
    container.setdefault("volumeMounts", []).append({"name": "packages", "mountPath": PACKAGES_PATH, "readOnly": True})
    settings = {"PYTHONPATH": PACKAGES_PATH, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "HOME": "/tmp"}
    container.setdefault("env", []).extend({"name": name, "value": value} for name, value in settings.items())


def engine_spec(image: str, script: str) -> Object:
    """Returns the spec of a pod that runs a script, which may import torch, and ends."""
    container: Object = {
        "name": "server",
        "image": image,
        "command": [PYTHON, "-W", "ignore", "-c", script],
        "resources": {"requests": {"cpu": "10m", "memory": "256Mi"}},
        "securityContext": RESTRICTED_SECURITY_CONTEXT,
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    spec: Object = {
        "containers": [container],
        "restartPolicy": "Never",
        "volumes": [{"name": "scratch", "emptyDir": {}}],
        "automountServiceAccountToken": False,
    }
    mount_site_packages(spec, container)
    return spec
