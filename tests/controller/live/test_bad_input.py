"""What people get wrong, and what is wrong around them: each is told with a sentence, and everything else goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from operator_support import objects
from operator_support.kubelet import Ending
from operator_support.pods import make_claim
from operator_support.waiting import eventually
from tonnage_operator.api import names

if TYPE_CHECKING:
    from operator_support.fleet import Fleet
    from operator_support.kubelet import Loaders

pytestmark = pytest.mark.usefixtures("controller")


@pytest.mark.parametrize(
    "message",
    ['secret "s3-reader" not found', "couldn't find key AWS_SECRET_ACCESS_KEY in Secret serving/s3-reader"],
    ids=["missing", "without a key"],
)
def test_a_missing_secret_is_named_and_the_job_goes_on_once_it_is_there(
    fleet: Fleet, loaders: Loaders, message: str
) -> None:
    fleet.add_nodes("a")
    loaders.waiting[names.ROLE_RESOLVE] = message
    fleet.create({"credentials": {"secretRef": {"name": "s3-reader"}}})
    fleet.until("Resolved", "False", "CredentialsMissing")
    (condition,) = [each for each in fleet.status()["conditions"] if each["type"] == "Resolved"]
    assert message in condition["message"]
    loaders.waiting.clear()
    fleet.until("Warm")


def test_a_bucket_that_is_gone_is_told_with_what_to_do_and_all_else_goes_on(fleet: Fleet, loaders: Loaders) -> None:
    fleet.add_nodes("a")
    fleet.create(name="fine")
    fleet.until("Warm", name="fine")
    loaders.broken_resolve = Ending(objects.failed_report("BucketNotFound", "There is no bucket models."), code=12)
    fleet.create()
    fleet.until("Resolved", "False", "BucketNotFound")
    assert fleet.condition("Ready") == ("False", "BucketNotFound")
    (resolved,) = [each for each in fleet.status()["conditions"] if each["type"] == "Resolved"]
    assert "There is no bucket models. Check the bucket's name" in resolved["message"]
    assert fleet.condition("Ready", "fine") == ("True", "Warm")
    assert fleet.events().count("BucketNotFound") >= 1
    loaders.broken_resolve = None
    fleet.until("Warm")


def test_an_object_replaced_under_a_pinned_revision_is_told_and_a_new_look_mends_it(
    fleet: Fleet, loaders: Loaders
) -> None:
    (node,) = fleet.add_nodes("a")
    loaders.broken[node] = Ending(objects.failed_report("SourceChanged", "model.tensors has another ETag."), code=18)
    fleet.create()
    fleet.until("Warm", "False", "SourceChanged")
    (warm,) = [each for each in fleet.status()["conditions"] if each["type"] == "Warm"]
    assert f"{node}: SourceChanged: model.tensors has another ETag." in warm["message"]
    pinned = fleet.status()["resolved"]["revision"]
    loaders.broken.clear()
    loaders.version = "2"
    fleet.patch({"files": {"exclude": ["nothing"]}})
    eventually(lambda: fleet.status()["resolved"]["revision"] != pinned)
    fleet.until("Warm")


def test_all_works_in_a_namespace_of_the_restricted_profile_without_host_paths(fleet: Fleet, loaders: Loaders) -> None:
    del loaders
    fleet.plane.kubectl("label", "namespace", fleet.namespace, "pod-security.kubernetes.io/enforce=restricted")
    fleet.add_nodes("a")
    make_claim(fleet)
    fleet.create({"cache": {"delivery": "EmptyDir"}, "placement": {"prewarm": "None"}}, name="own")
    fleet.create({"cache": {"delivery": "PersistentVolumeClaim", "claimName": "weights"}})
    fleet.until("Ready", name="own")
    fleet.until("Warm")
