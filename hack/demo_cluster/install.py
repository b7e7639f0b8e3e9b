"""Clusters with Tonnage: one that stays, and one for the story."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo_cluster.manifests import quickstart
from e2e_support.e2e_cluster import BUCKET, E2ECluster
from e2e_support.images import build_images
from local_cluster import errors
from local_cluster.cluster import attach, start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_support.images import Images
    from local_cluster.cluster import Cluster

PREFIX = "quickstart/"
_INSTALL = "helm upgrade --install tonnage charts/tonnage -n tonnage-system --create-namespace --wait"


def start_demo_cluster(folder: Path, work: Path, *, small: bool) -> None:
    """Starts a cluster that stays, with Tonnage and a model in a bucket, and says what to do with it.

    It may be repeated: then Tonnage is upgraded to what the sources are now.
    """
    images = build_images()
    cluster = _running_cluster(folder)
    if cluster is None:
        print("Starting a real one-node Kubernetes, with an S3 server beside it …", flush=True)
        cluster = start(folder, keep=True)
    site = install(cluster, work, images)
    upload_model(site, work / "model", "v1", PREFIX, small=small)
    manifest = folder / "quickstart.yaml"
    manifest.write_text(quickstart(site, PREFIX))
    print(f"""
Tonnage is installed, and a model lies in s3://{BUCKET}/{PREFIX}. In a shell:

  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.program_folder}:$PATH
  kubectl apply -f {manifest}
  kubectl get mw,pods -n quickstart -w

The manifest is examples/quickstart.yaml with this cluster's bucket and keys.
`make demo-cluster` tells the whole story on this cluster, `make cluster-down` ends it and leaves nothing.""")


@contextlib.contextmanager
def cluster_for_walkthrough(folder: Path, work: Path) -> Iterator[E2ECluster]:
    """The cluster that stays, where it runs; else one of the story's own, which ends with it."""
    images = build_images()
    if cluster := _running_cluster(folder):
        print(f"Using the cluster in {folder}.", flush=True)
        yield install(cluster, work, images)
        return
    print("Starting a real one-node Kubernetes, with an S3 server beside it …", flush=True)
    began = time.monotonic()
    with start(work / "cluster") as cluster:
        print(f"    up after {time.monotonic() - began:.0f} s", flush=True)
        yield install(cluster, work, images)


def install(cluster: Cluster, work: Path, images: Images) -> E2ECluster:
    """Gives the node the images and installs the chart."""
    for archive in images.archives:
        cluster.import_image(archive)
    site = E2ECluster(cluster, work, images)
    with contextlib.suppress(
        site.s3_client.exceptions.BucketAlreadyOwnedByYou, site.s3_client.exceptions.BucketAlreadyExists
    ):
        site.s3_client.create_bucket(Bucket=BUCKET)
    print(f"    $ {_INSTALL}", flush=True)
    site.release.install()
    return site


def upload_model(site: E2ECluster, folder: Path, version: str, prefix: str, *, small: bool) -> int:
    """Makes a model as training would leave it, puts it into the bucket and returns its bytes."""
    script = Path(__file__).with_name("write_model.py")
    command = [sys.executable, "-W", "ignore", str(script), str(folder), version]
    subprocess.run([*command, *(["--small"] if small else [])], check=True, stdout=subprocess.DEVNULL)
    files = {path.name: path for path in sorted(folder.iterdir())}
    site.upload(prefix, files)
    return sum(path.stat().st_size for path in files.values())


def _running_cluster(folder: Path) -> Cluster | None:
    with contextlib.suppress(errors.NotRunning):
        cluster = attach(folder)
        return cluster if cluster.is_running else None
    return None
