"""What all cluster tests share: one real node with Tonnage installed by its chart, an S3 server, models in a bucket."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from cluster_support import dump, sources
from cluster_support.api import Api, condition
from cluster_support.release import NAMESPACE, Release

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cluster_support.images import Images
    from local_cluster.cluster import Cluster
    from local_cluster.object_storage import ObjectStorage

BUCKET = "models"
MEDIA = {"Memory": "/dev/shm/tonnage", "Disk": "/var/lib/tonnage"}
"""Folders on the node, as the chart has them."""


@dataclass
class Site:
    """The cluster and what is in it."""

    cluster: Cluster
    folder: Path
    images: Images
    bucket: str = BUCKET
    sources: sources.Sources = field(init=False)

    @cached_property
    def release(self) -> Release:
        """The chart's installation."""
        return Release(self)

    @property
    def storage(self) -> ObjectStorage:
        """The S3 server."""
        return self.cluster.object_storage

    @property
    def node(self) -> str:
        """The node's name."""
        return self.cluster.node_name

    @property
    def root(self) -> Path:
        """The node's file system, as seen from here; another one after a reboot."""
        return self.cluster.node_path("/")

    @property
    def media(self) -> dict[str, Path]:
        """Where the node's caches lie, as seen from here."""
        return {name: self.root / path.lstrip("/") for name, path in MEDIA.items()}

    @property
    def credentials(self) -> dict[str, str]:
        """What a reader's Secret holds."""
        return self.credentials_of("reader")

    def credentials_of(self, user: str) -> dict[str, str]:
        """Returns the keys of a user of the S3 server."""
        identity = self.storage.user(user)
        return {"AWS_ACCESS_KEY_ID": identity.access_key, "AWS_SECRET_ACCESS_KEY": identity.secret_key}

    @cached_property
    def api(self) -> Api:
        """The administrator's way to the API server."""
        return Api(self.cluster.kubeconfig)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """Runs kubectl and returns its output."""
        return self.cluster.kubectl(*arguments, input=stdin, timeout=timeout)

    def reboot(self) -> None:
        """Cuts the node's power, boots it again, and returns when it is ready."""
        self.cluster.reboot_node()
        self.api.until("Node", self.node, "", lambda node: condition(node, "Ready")[0] == "True", within=90)

    @cached_property
    def s3(self) -> Any:
        """A boto3 client of the server's administrator."""
        keys = {key.lower(): value for key, value in self.credentials_of("admin").items()}
        config = Config(signature_version="s3v4", s3={"addressing_style": "path"}, retries={"max_attempts": 3})
        return boto3.client(
            "s3", endpoint_url=self.storage.endpoint, region_name=self.storage.region, config=config, **keys
        )

    def put(self, prefix: str, files: Mapping[str, Path]) -> None:
        """Uploads files below a prefix."""
        for name, path in files.items():
            self.s3.upload_file(str(path), self.bucket, prefix + name)


def prepare() -> None:
    """Installs and builds what a cluster needs; minutes, the first time.

    Raises:
        Lacking: This machine can't run one; the message names everything that is missing.
    """
    from local_cluster import parts, requirements

    with tempfile.TemporaryDirectory(prefix="tonnage-e2e-") as folder:
        requirements.ensure_requirements(Path(folder), print)
    parts.find_programs()


@contextlib.contextmanager
def start_site(folder: Path, images: Images) -> Iterator[Site]:
    """Starts a cluster, installs Tonnage, and takes everything down at the end."""
    from local_cluster.cluster import start
    from local_cluster.errors import CommandFailed

    making = sources.start_making(folder / "sources")
    try:
        with start(folder / "cluster") as cluster:
            for archive in images.archives:
                cluster.import_image(archive)
            site = Site(cluster, folder, images)
            site.s3.create_bucket(Bucket=BUCKET)
            try:
                site.release.install()
            except CommandFailed as error:
                raise RuntimeError(f"{error}\n{dump.gather(site, NAMESPACE)}") from None
            site.sources = sources.finish_making(making, folder / "sources")
            yield site
    finally:
        making.kill()
        making.wait()
