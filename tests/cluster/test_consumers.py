"""Engines in pods read the cache and give what the original model gives, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from cluster_support.engines import engine_spec, give_packages, need_same_python
from cluster_support.pods import PYTHON, Pod
from cluster_support.sources import PROMPT
from cluster_support.workspace import SECRET, Workspace
from tonnage_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster_support.site import Site

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "transformers"

COMMON = f"""
import hashlib, os
import torch, transformers
torch.set_num_threads(1)
path = os.environ["TONNAGE_MODEL_PATH"]

def tell(model):
    asked = transformers.AutoTokenizer.from_pretrained(path)({PROMPT!r}, return_tensors="pt")
    with torch.inference_mode():
        logits = model.eval()(**asked).logits
    print("logits", hashlib.sha256(bytes(logits.contiguous().view(torch.uint8).numpy())).hexdigest(), flush=True)
"""

TRANSFORMERS = (
    COMMON
    + """
tell(transformers.AutoModelForCausalLM.from_pretrained(path, dtype="auto"))
"""
)

TENSORIZER = (
    COMMON
    + """
import asyncio, sys, types
# What tensorizer imports wants this package on Python before 3.11.3, as the image has it.
sys.modules["async_timeout"] = types.SimpleNamespace(timeout=asyncio.timeout)
from tensorizer import TensorDeserializer
config = transformers.AutoConfig.from_pretrained(path)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
with TensorDeserializer(path + "/model.tensors", device="cpu", verify_hash=True) as deserializer:
    deserializer.load_into_module(model)
tell(model)
"""
)


@pytest.fixture(scope="module")
def engines(site: Site) -> Iterator[Workspace]:
    """All engines of this file, which start together: importing PyTorch is most of what they do."""
    need_same_python()
    space = Workspace.make(site, "engines")
    layouts = {"transformers": "Safetensors", "tensorizer": "Tensorizer"}
    models = [
        space.model(name, files=site.sources.llama, spec={"cache": {"layout": layout}}, wait=False)
        for name, layout in layouts.items()
    ]
    site.put("small-llama/", site.sources.llama)
    for document in yaml.safe_load_all((EXAMPLE / "deployment.yaml").read_text()):
        site.api.create(_adapted(document, space))
    for model in models:
        model.until("Ready")
    for name, script in (("transformers", TRANSFORMERS), ("tensorizer", TENSORIZER)):
        metadata = {"name": f"{name}-pod", "namespace": space.namespace, "annotations": {names.MODEL: name}}
        spec = engine_spec(site.images.loader, script)
        site.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    yield space
    space.leave()


def _adapted(document: dict[str, Any], space: Workspace) -> dict[str, Any]:
    """Returns an object of the example for this cluster: its bucket, and in place of an image the same packages."""
    document["metadata"]["namespace"] = space.namespace
    if document["kind"] == "ModelWeights":
        document["spec"]["source"]["s3"]["endpoint"] = space.site.storage.endpoint
        assert document["spec"]["credentials"]["secretRef"]["name"] == SECRET
    if document["kind"] == "Deployment":
        script = {"server.py": (EXAMPLE / "server.py").read_text()}
        metadata = {"name": "server", "namespace": space.namespace}
        space.site.api.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": script})
        spec = document["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        container |= {"image": space.site.images.loader, "command": [PYTHON, "-W", "ignore", "/app/server.py"]}
        give_packages(spec, container)
        spec["volumes"].append({"name": "app", "configMap": {"name": "server"}})
        container["volumeMounts"].append({"name": "app", "mountPath": "/app"})
        document["spec"]["replicas"] = 1
    return document


@pytest.mark.parametrize("engine", ["transformers", "tensorizer"])
def test_an_engine_in_a_pod_gives_the_outputs_of_the_original_model(engine: str, engines: Workspace) -> None:
    pod = Pod(engines.site, f"{engine}-pod", engines.namespace)
    pod.until(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, within=120, what="its end")
    assert f"logits {engines.site.sources.logits}" in pod.logs()


def test_a_deployment_answers_over_http_as_the_original_model_does(engines: Workspace, site: Site) -> None:
    space = engines
    site.api.until(
        "Deployment", "transformers", space.namespace, lambda body: (body["status"] or {}).get("readyReplicas") == 1,
        within=120, what="a ready server",
    )  # fmt: skip
    (pod,) = space.pods(labelSelector="app.kubernetes.io/name=transformers")
    ask = (
        "import json, urllib.request\n"
        f"body = json.dumps({{'prompt': {PROMPT!r}, 'tokens': 8}}).encode()\n"
        f"url = 'http://transformers.{space.namespace}/generate'\n"
        "print(urllib.request.urlopen(url, body, timeout=60).read().decode())"
    )
    asking = space.pod("asking", model="", script=ask, restartPolicy="Never")
    asking.until(lambda body: body["status"]["phase"] in {"Succeeded", "Failed"}, what="an answer")
    answer = json.loads(asking.logs())
    assert answer["text"] == site.sources.answer
    assert answer["revision"] in pod["metadata"]["annotations"][names.REVISION]
