"""The cluster of the e2e tests: a real node with Tonnage installed by its chart, an S3 server, models in a bucket."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from e2e_support import diagnostics
from e2e_support.helm_release import NAMESPACE, HelmRelease
from e2e_support.kube_client import KubeClient
from e2e_support.model_files import ModelFiles, finish_writing, start_writing
from operator_support.objects import get_condition

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from e2e_support.helm_release import Values
    from e2e_support.images import Images
    from local_cluster.cluster import Cluster
    from local_cluster.object_storage import ObjectStorage

BUCKET = "models"
MEDIA = {"Memory": "/dev/shm/tonnage", "Disk": "/var/lib/tonnage"}
"""Host paths of the media, as in the chart's defaults."""


@dataclass
class E2ECluster:
    """The cluster, its S3 server and the chart's release."""

    cluster: Cluster
    folder: Path
    images: Images
    bucket: str = BUCKET
    model_files: ModelFiles = field(init=False)

    @cached_property
    def release(self) -> HelmRelease:
        return HelmRelease(self)

    @property
    def storage(self) -> ObjectStorage:
        return self.cluster.object_storage

    @property
    def node(self) -> str:
        return self.cluster.node_name

    @property
    def node_root(self) -> Path:
        """Path of the node's root file system on this machine; it changes with a reboot."""
        return self.cluster.node_path("/")

    @property
    def media(self) -> dict[str, Path]:
        """Paths of the node's caches on this machine."""
        return {name: self.node_root / path.lstrip("/") for name, path in MEDIA.items()}

    @property
    def reader_credentials(self) -> dict[str, str]:
        """The data of a reader's Secret."""
        return self.user_credentials("reader")

    def user_credentials(self, user: str) -> dict[str, str]:
        """Returns the credentials of a user of the S3 server, as environment variables."""
        identity = self.storage.user(user)
        return {"AWS_ACCESS_KEY_ID": identity.access_key, "AWS_SECRET_ACCESS_KEY": identity.secret_key}

    @cached_property
    def api(self) -> KubeClient:
        """A client with the administrator's credentials."""
        return KubeClient(self.cluster.kubeconfig)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        return self.cluster.kubectl(*arguments, input=stdin, timeout=timeout)

    def reboot(self) -> None:
        """Reboots the node without a shutdown, and waits until it is ready."""
        self.cluster.reboot_node()
        self.api.wait_for("Node", self.node, "", lambda node: get_condition(node, "Ready")[0] == "True", timeout=90)

    @cached_property
    def s3_client(self) -> Any:
        """A boto3 client with the administrator's credentials."""
        keys = {key.lower(): value for key, value in self.user_credentials("admin").items()}
        config = Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 3})
        return boto3.client(
            "s3", endpoint_url=self.storage.endpoint, region_name=self.storage.region, config=config, **keys
        )

    def upload(self, prefix: str, files: Mapping[str, Path]) -> None:
        for name, path in files.items():
            self.s3_client.upload_file(str(path), self.bucket, prefix + name)


def ensure_prerequisites() -> None:
    """Installs and builds what a cluster needs. The first time takes minutes.

    Raises:
        MissingRequirements: The host can't run a cluster; the message names all that is missing.
    """
    from local_cluster import components, preflight

    with tempfile.TemporaryDirectory(prefix="tonnage-e2e-") as folder:
        preflight.ensure_requirements(Path(folder), print)
    components.find_programs()


@contextlib.contextmanager
def start_e2e_cluster(
    folder: Path, images: Images, *, values: Values | None = None, kubelet: Mapping[str, Any] | None = None
) -> Iterator[E2ECluster]:
    """Starts a cluster, installs Tonnage, and removes both at the end.

    Args:
        folder: For files.
        images: What is installed.
        values: Values of the chart, besides those of all tests.
        kubelet: Further fields of the kubelet's configuration.
    """
    from local_cluster.cluster import start
    from local_cluster.errors import CommandFailed

    writer = start_writing(folder / "sources")
    try:
        with start(folder / "cluster", kubelet=kubelet) as cluster:
            for archive in images.archives:
                cluster.import_image(archive)
            e2e = E2ECluster(cluster, folder, images)
            e2e.s3_client.create_bucket(Bucket=BUCKET)
            try:
                e2e.release.install(values)
            except CommandFailed as error:
                raise RuntimeError(f"{error}\n{diagnostics.collect(e2e, NAMESPACE)}") from None
            e2e.model_files = finish_writing(writer, folder / "sources")
            yield e2e
    finally:
        writer.kill()
        writer.wait()
