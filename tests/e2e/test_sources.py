"""Sources other than ``.tensors`` in a bucket, on the real node: safetensors files, a hub, and a Job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

import tonnage
from e2e_support.torch_pods import mount_site_packages, skip_unless_same_python
from operator_support.objects import get_condition
from support.hub_server import HubServer
from support.repository import ROOT
from tonnage.contract import Outcome
from tonnage_operator.api import names

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from e2e_support.e2e_cluster import E2ECluster
    from e2e_support.namespace import Namespace

EXAMPLES = ROOT / "examples"
LOADER_PYTHON = "/opt/tonnage/bin/python"
"""The Python of the loader's image that has the package."""
RUN_TONNAGE = """
import asyncio, sys, types
# A dependency of tensorizer imports this package on Python before 3.11.3, which the image has.
sys.modules["async_timeout"] = types.SimpleNamespace(timeout=asyncio.timeout)
from tonnage.cli.main import main
sys.exit(main())
"""


def checkpoint() -> tuple[dict[str, torch.Tensor], dict[str, bytes]]:
    """Returns tensors, and the files of a model with them."""
    import torch
    from safetensors.torch import save

    tensors = {f"layers.{at}.weight": torch.randn(128, 512).to(torch.bfloat16) for at in range(8)}
    return tensors, {"model.safetensors": save(tensors), "config.json": b'{"model_type": "tiny"}'}


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / path).read_text()))


def test_a_folder_of_safetensors_files_is_prewarmed_and_served_as_it_is(namespace: Namespace, tmp_path: Path) -> None:
    _, files = checkpoint()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    model = namespace.create_model(
        "checkpoint",
        files={name: tmp_path / name for name in files},
        spec={"placement": {"prewarm": "AllMatching"}},
        wait=False,
    )
    model.wait_for_condition("Warm")
    assert {name: (model.entry_path() / "model" / name).read_bytes() for name in files} == files
    entry = model.nodecache_entry()
    assert entry is not None
    assert (entry["state"], entry["verified"]) == ("Ready", "CRC32")
    assert entry["verifiedBy"] == model.status["verifiedBy"] == "CRC32: 2 objects"
    pod = namespace.create_pod(model="checkpoint")
    pod.wait_ready()
    assert pod.last_report().outcome is Outcome.HIT
    damaged = bytearray(files["model.safetensors"])
    damaged[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(damaged)
    again = namespace.create_model("again", files={name: tmp_path / name for name in files})
    assert again.revision != model.revision


def test_a_gated_model_of_a_hub_is_loaded_with_the_token_of_a_secret(namespace: Namespace, e2e: E2ECluster) -> None:
    host = e2e.cluster.host_address
    _, files = checkpoint()
    with HubServer(host, host) as hub:
        commit = hub.push("org/model", files, gated=True)
        location = {"repo": "org/model", "revision": commit, "endpoint": hub.endpoint}
        (model, _) = documents("access/hub.yaml")
        model["metadata"] = {"name": "from-hub", "namespace": namespace.name}
        model["spec"]["source"]["hub"] = location
        namespace.apply_secret(model["spec"]["credentials"]["secretRef"]["name"], {"HF_TOKEN": hub.token})
        e2e.api.create(model)
        denied = {**model, "metadata": {"name": "denied", "namespace": namespace.name}}
        denied["spec"] = {**model["spec"], "credentials": {"anonymous": {}}}
        e2e.api.create(denied)
        e2e.api.wait_for(
            "ModelWeights", "from-hub", namespace.name, lambda body: get_condition(body, "Ready")[0] == "True"
        )
        pod = namespace.create_pod(model="from-hub")
        pod.wait_ready()
        report = pod.last_report()
        assert (report.outcome, report.verified) == (Outcome.LOADED, "sha256")
        later = namespace.create_pod(model="from-hub")
        later.wait_ready()
        assert later.last_report().outcome is Outcome.HIT
        refused = e2e.api.wait_for(
            "ModelWeights", "denied", namespace.name,
            lambda body: get_condition(body, "Resolved")[1] == "AccessDenied", description="the hub's refusal",
        )  # fmt: skip
        assert "gated" in get_condition(refused, "Resolved")[2]
        described = e2e.kubectl("get", "pod,jobs,mw", "-n", namespace.name, "-o", "yaml")
        assert hub.token not in described + pod.logs(names.LOADER_CONTAINER)
        assert {each.token for each in hub.requests if each.server == "cdn"} == {""}


def test_the_job_of_the_examples_makes_tensors_of_a_model_in_the_bucket(
    namespace: Namespace, e2e: E2ECluster, tmp_path: Path
) -> None:
    skip_unless_same_python()
    tensors, files = checkpoint()
    for name, data in files.items():
        e2e.s3_client.put_object(Bucket=e2e.bucket, Key=f"{namespace.name}/in/{name}", Body=data)
    (job,) = documents("serialize/job.yaml")
    job["metadata"]["namespace"] = namespace.name
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    target = f"s3://{e2e.bucket}/{namespace.name}/out/"
    replaced = {
        "s3://models/llama-8b/": f"s3://{e2e.bucket}/{namespace.name}/in/",
        "s3://models/llama-8b-tensors/": target,
        "--endpoint-url=http://s3.storage:8333": f"--endpoint-url={e2e.storage.endpoint}",
    }
    assert set(replaced) <= set(container["args"])
    container["args"] = [replaced.get(argument, argument) for argument in container["args"]]
    container |= {"image": e2e.images.loader, "command": [LOADER_PYTHON, "-W", "ignore", "-c", RUN_TONNAGE]}
    container["resources"] = {"requests": {"cpu": "100m", "memory": "512Mi"}}
    mount_site_packages(spec, container)
    container["env"] = [each for each in container["env"] if (each["name"], each["value"]) != ("HOME", "/tmp")]
    secret = next(each["secret"]["secretName"] for each in spec["volumes"] if "secret" in each)
    namespace.apply_secret(secret, e2e.user_credentials("admin"))
    e2e.api.create(job)
    ended = e2e.api.wait_for(
        "Job", job["metadata"]["name"], namespace.name,
        lambda body: {each["type"] for each in body["status"].get("conditions", ())} & {"Complete", "Failed"},
        timeout=150, description="its end",
    )  # fmt: skip
    log = e2e.kubectl("logs", "-n", namespace.name, f"job/{job['metadata']['name']}")
    assert "Complete" in {each["type"] for each in ended["status"]["conditions"]}, log
    digest = log.rsplit("digest ", 1)[1].split()[0]
    report = tonnage.load(
        target, cache=tmp_path, endpoint_url=e2e.storage.endpoint, expected_digest=digest,
        environment=e2e.user_credentials("admin"),
    )  # fmt: skip
    with tonnage.open(report.path) as weights:
        assert weights.keys() == tensors.keys()
        assert all(weights[name].equal(tensor) for name, tensor in tensors.items())
