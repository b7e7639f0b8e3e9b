"""Clusters with Tonnage: for `make cluster-up`, which keeps running, and for `make demo-cluster`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demo_cluster.manifests import quickstart
from e2e_support.e2e_cluster import BUCKET, E2ECluster
from e2e_support.images import build_images
from local_cluster import errors
from local_cluster.cluster import attach, start

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from e2e_support.images import Images
    from local_cluster.cluster import Cluster

PREFIX = "quickstart/"
_SMALL_REQUESTS = {f"{part}.resources.requests.cpu": "10m" for part in ("loader", "controller", "webhook")}
"""Values that differ from the chart's defaults, so that all pods fit on a node with two cores. They are printed."""


def install_command() -> str:
    """Returns the command that installs what `install` installs."""
    changes = " ".join(f"--set {name}={value}" for name, value in _SMALL_REQUESTS.items())
    return f"helm upgrade --install tonnage charts/tonnage -n tonnage-system --create-namespace --wait {changes}"


def install_values() -> dict[str, Any]:
    """Returns the values of that command."""
    values: dict[str, Any] = {}
    for name, value in _SMALL_REQUESTS.items():
        *above, last = name.split(".")
        inner = values
        for part in above:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return values


def start_demo_cluster(folder: Path, work: Path, *, small: bool) -> None:
    """Starts a cluster with Tonnage and a model in a bucket, which keeps running, and prints how to use it.

    If the cluster is running already, Tonnage is upgraded to the current sources.
    """
    images = build_images()
    cluster = _running_cluster(folder)
    if cluster is None:
        print("Starting a one-node Kubernetes cluster and an S3 server …", flush=True)
        cluster = start(folder, keep=True)
    site = install(cluster, work, images)
    upload_models(site, work / "model", {"v1": PREFIX}, small=small)
    manifest = folder / "quickstart.yaml"
    manifest.write_text(quickstart(site, PREFIX))
    keys = folder / "s3-admin.env"
    keys.touch(mode=0o600)
    keys.write_text(
        f"export AWS_ENDPOINT_URL={site.storage.endpoint} AWS_REGION=us-east-1\n"
        f"export AWS_ACCESS_KEY_ID={site.storage.access_key} AWS_SECRET_ACCESS_KEY={site.storage.secret_key}\n"
    )
    print(f"""
Tonnage is installed, and s3://{BUCKET}/{PREFIX} has a model. Try it in a shell:

  export KUBECONFIG={cluster.kubeconfig} PATH={cluster.program_folder}:$PATH
  kubectl apply -f {manifest}
  kubectl get mw,pods -n quickstart -w

The manifest is examples/quickstart.yaml with this cluster's bucket and keys. To try a model of your own, upload its
folder with any S3 client, and set the prefix in the manifest:

  . {keys}
  aws s3 cp --recursive my-model/ s3://{BUCKET}/my-model/

`make demo-cluster` runs the demo on this cluster; `make cluster-down` removes it with all its data.""")


@contextlib.contextmanager
def cluster_for_walkthrough(folder: Path, work: Path) -> Iterator[E2ECluster]:
    """The cluster of `make cluster-up` if it is running, otherwise one that stops at the end of the context."""
    images = build_images()
    if cluster := _running_cluster(folder):
        print(f"Using the cluster in {folder}.", flush=True)
        yield install(cluster, work, images)
        return
    print("Starting a one-node Kubernetes cluster and an S3 server …", flush=True)
    began = time.monotonic()
    with start(work / "cluster") as cluster:
        print(f"    ready after {time.monotonic() - began:.0f} s", flush=True)
        yield install(cluster, work, images)


def install(cluster: Cluster, work: Path, images: Images) -> E2ECluster:
    """Imports the images into the node, creates the bucket and installs the chart."""
    for archive in images.archives:
        cluster.import_image(archive)
    site = E2ECluster(cluster, work, images)
    with contextlib.suppress(
        site.s3_client.exceptions.BucketAlreadyOwnedByYou, site.s3_client.exceptions.BucketAlreadyExists
    ):
        site.s3_client.create_bucket(Bucket=BUCKET)
    print(f"    $ {install_command()}", flush=True)
    site.release.install(install_values(), base={})
    return site


def upload_models(site: E2ECluster, folder: Path, prefixes: Mapping[str, str], *, small: bool) -> dict[str, int]:
    """Creates versions of a model, uploads each to its prefix, and returns their sizes in bytes."""
    script = Path(__file__).with_name("write_model.py")
    command = [sys.executable, "-W", "ignore", str(script), str(folder), *prefixes]
    subprocess.run([*command, *(["--small"] if small else [])], check=True, stdout=subprocess.DEVNULL)
    sizes = {}
    for version, prefix in prefixes.items():
        files = {path.name: path for path in sorted((folder / version).iterdir())}
        site.upload(prefix, files)
        sizes[version] = sum(path.stat().st_size for path in files.values())
    return sizes


def _running_cluster(folder: Path) -> Cluster | None:
    with contextlib.suppress(errors.NotRunning):
        cluster = attach(folder)
        return cluster if cluster.is_running else None
    return None
