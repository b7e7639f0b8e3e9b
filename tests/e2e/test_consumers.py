"""Inference engines in pods load from the cache and give the outputs of the original model, bit for bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from e2e_support.model_files import PROMPT
from e2e_support.namespace import READER_SECRET, Namespace
from e2e_support.pods import PYTHON, Pod
from e2e_support.torch_pods import engine_spec, mount_site_packages, skip_unless_same_python
from support.repository import ROOT
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2e_support.e2e_cluster import E2ECluster

EXAMPLE = ROOT / "examples" / "transformers"

COMMON = f"""
import hashlib, os
import torch, transformers
torch.set_num_threads(1)
path = os.environ["TONNAGE_MODEL_PATH"]

def print_logits(model):
    inputs = transformers.AutoTokenizer.from_pretrained(path)({PROMPT!r}, return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**inputs).logits
    print("logits", hashlib.sha256(bytes(logits.contiguous().view(torch.uint8).numpy())).hexdigest(), flush=True)
"""

TRANSFORMERS = (
    COMMON
    + """
print_logits(transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto"))
"""
)

TENSORIZER = (
    COMMON
    + """
import asyncio, sys, types
# A dependency of tensorizer imports this package on Python before 3.11.3, which the image has.
sys.modules["async_timeout"] = types.SimpleNamespace(timeout=asyncio.timeout)
from tensorizer import TensorDeserializer
config = transformers.AutoConfig.from_pretrained(path)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
with TensorDeserializer(path + "/model.tensors", device="cpu", verify_hash=True) as deserializer:
    deserializer.load_into_module(model)
print_logits(model)
"""
)


@pytest.fixture(scope="module")
def engines(e2e: E2ECluster) -> Iterator[Namespace]:
    """The pods of all engines, started together since they spend most of their time importing PyTorch."""
    skip_unless_same_python()
    namespace = Namespace.create(e2e, "engines")
    layouts = {"transformers": "Safetensors", "tensorizer": "Tensorizer"}
    models = [
        namespace.create_model(name, files=e2e.model_files.llama, spec={"cache": {"layout": layout}}, wait=False)
        for name, layout in layouts.items()
    ]
    e2e.upload("small-llama/", e2e.model_files.llama)
    for document in yaml.safe_load_all((EXAMPLE / "deployment.yaml").read_text()):
        e2e.api.create(_adapted(document, namespace))
    for model in models:
        model.wait_for_condition("Ready")
    for name, script in (("transformers", TRANSFORMERS), ("tensorizer", TENSORIZER)):
        metadata = {"name": f"{name}-pod", "namespace": namespace.name, "annotations": {names.MODEL: name}}
        spec = engine_spec(e2e.images.loader, script)
        e2e.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    yield namespace
    namespace.delete()


def _adapted(document: dict[str, Any], namespace: Namespace) -> dict[str, Any]:
    """Returns an object of the example with this cluster's bucket, and mounted packages in place of the image."""
    document["metadata"]["namespace"] = namespace.name
    if document["kind"] == "ModelWeights":
        document["spec"]["source"]["s3"]["endpoint"] = namespace.e2e.storage.endpoint
        assert document["spec"]["credentials"]["secretRef"]["name"] == READER_SECRET
    if document["kind"] == "Deployment":
        script = {"server.py": (EXAMPLE / "server.py").read_text()}
        metadata = {"name": "server", "namespace": namespace.name}
        namespace.e2e.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": script})
        spec = document["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        container |= {"image": namespace.e2e.images.loader, "command": [PYTHON, "-W", "ignore", "/app/server.py"]}
        mount_site_packages(spec, container)
        spec["volumes"].append({"name": "app", "configMap": {"name": "server"}})
        container["volumeMounts"].append({"name": "app", "mountPath": "/app"})
        document["spec"]["replicas"] = 1
    return document


@pytest.mark.parametrize("engine", ["transformers", "tensorizer"])
def test_an_engine_in_a_pod_has_the_outputs_of_the_original_model(engine: str, engines: Namespace) -> None:
    pod = Pod(engines.e2e, f"{engine}-pod", engines.name)
    pod.wait_for(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, timeout=120, description="its end")
    assert f"logits {engines.e2e.model_files.logits}" in pod.logs()


def test_a_deployment_responds_over_http_as_the_original_model_does(engines: Namespace, e2e: E2ECluster) -> None:
    namespace = engines
    e2e.api.wait_for(
        "Deployment", "transformers", namespace.name, lambda body: (body["status"] or {}).get("readyReplicas") == 1,
        timeout=120, description="a ready server",
    )  # fmt: skip
    (pod,) = namespace.list_pods(labelSelector="app.kubernetes.io/name=transformers")
    ask = (
        "import json, urllib.request\n"
        f"body = json.dumps({{'prompt': {PROMPT!r}, 'tokens': 8}}).encode()\n"
        f"url = 'http://transformers.{namespace.name}/generate'\n"
        "print(urllib.request.urlopen(url, body, timeout=60).read().decode())"
    )
    asking = namespace.create_pod("asking", model="", script=ask, restartPolicy="Never")
    asking.wait_for(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, description="an answer")
    answer = json.loads(asking.logs())
    assert answer["text"] == e2e.model_files.completion
    assert answer["revision"] in pod["metadata"]["annotations"][names.REVISION]
