"""Pods with PyTorch: the test environment's packages are mounted into the loader's image."""

from __future__ import annotations

import sys
import sysconfig
from typing import Any

import pytest

from e2e_support.pods import PYTHON, RESTRICTED_SECURITY_CONTEXT

Object = dict[str, Any]

IMAGE_PYTHON = (3, 11)
"""Version in Debian 12, the base of the image."""
PACKAGES_PATH = "/site"


def skip_unless_same_python() -> None:
    """Skips the test if the image's Python can't import this environment's extension modules."""
    if sys.version_info[:2] != IMAGE_PYTHON:
        pytest.skip(f"PyTorch is mounted from this environment, whose Python is not {'.'.join(map(str, IMAGE_PYTHON))}")


def mount_site_packages(spec: Object, container: Object) -> None:
    """Mounts this environment's packages (torch, transformers) into a pod's container, and adds them to its path."""
    spec.setdefault("volumes", []).append({"name": "packages", "hostPath": {"path": sysconfig.get_path("purelib")}})
    container.setdefault("volumeMounts", []).append({"name": "packages", "mountPath": PACKAGES_PATH, "readOnly": True})
    settings = {"PYTHONPATH": PACKAGES_PATH, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "HOME": "/tmp"}
    container.setdefault("env", []).extend({"name": name, "value": value} for name, value in settings.items())


def engine_spec(image: str, script: str) -> Object:
    """Returns the spec of a pod that runs a script once. The script may import torch."""
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
