"""Directories in which engines keep what they compile at their start: volumes, mounts and environment variables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tonnage_operator.api import names
from tonnage_operator.api.modelweights import Medium
from tonnage_operator.domain import naming
from tonnage_operator.domain.specs.loader_container import host_path

if TYPE_CHECKING:
    from tonnage_operator.api.base import Body
    from tonnage_operator.domain.installation import Installation

VOLUME_PREFIX: Final = f"{names.VOLUME_PREFIX}artifacts"
CONTAINER_FOLDER: Final = "/var/cache/tonnage"
"""Where containers have their directory."""
LOADER_FOLDER: Final = "/artifacts"
"""Where a loader has the directories that it prepares."""
FILES: Final = "files"
"""The folder in a directory that containers mount; see ``tonnage.cache.artifacts``."""
PATH_VARIABLE: Final = "TONNAGE_ARTIFACTS_PATH"
CAPABILITIES: Final = ("DAC_OVERRIDE", "FOWNER")
"""What root needs to measure and remove files of other users."""

_FOLDERS: Final = {
    "VLLM_CACHE_ROOT": "vllm",
    "SGLANG_CACHE_DIR": "sglang",
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "DG_JIT_CACHE_DIR": "deep-gemm",
    "SGLANG_DG_CACHE_DIR": "deep-gemm",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUTE_DSL_CACHE_DIR": "cute-dsl",
    "CUDA_CACHE_PATH": "cuda",
}
"""Folders in the directory, by the variable with which an engine or a compiler takes one."""


@dataclass(frozen=True, slots=True)
class ArtifactsDirectory:
    """One directory of a pod."""

    key: str
    """Cache key: its path below the folder of the medium ``Disk``."""
    number: int
    """Makes the volume's name unique in the pod; from 0."""
    image: str

    @property
    def volume_name(self) -> str:
        return f"{VOLUME_PREFIX}-{self.number}"

    @property
    def loader_path(self) -> str:
        return f"{LOADER_FOLDER}/{naming.entry_of(self.key)}"

    def volume(self, installation: Installation) -> Body:
        """Returns the volume."""
        path = host_path(installation, Medium.DISK, self.key)
        return {"name": self.volume_name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}

    def loader_mount(self) -> Body:
        """Returns the mount of the loader, which creates what containers mount."""
        return {"name": self.volume_name, "mountPath": self.loader_path}

    def container_mount(self) -> Body:
        """Returns the writable mount of an engine's container."""
        return {"name": self.volume_name, "mountPath": CONTAINER_FOLDER, "subPath": FILES}


def artifacts_environment(folder: str = CONTAINER_FOLDER) -> dict[str, str]:
    """Returns the variables that lead engines and compilers to a directory."""
    return {PATH_VARIABLE: folder} | {name: f"{folder}/{each}" for name, each in _FOLDERS.items()}


def add_capabilities(container: Body) -> None:
    """Gives a container of root what it needs to handle files of other users."""
    context = container["securityContext"]
    capabilities = {**context["capabilities"], "add": list(CAPABILITIES)}
    container["securityContext"] = {**context, "capabilities": capabilities}
