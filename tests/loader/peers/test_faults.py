"""Whatever peers do, a load ends with the right bytes, from other peers or from the source."""

from __future__ import annotations

import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from support.models import CONFIG, assert_tensors_equal, load_safetensors_dir, make_tensors, to_tensors_file
from support.peer_fleet import Fleet, Node, finish, source_of
from support.ports import free_ports
from support.stalling_proxy import StallingProxy
from tonnage.contract import Limits
from tonnage.contract.peers import Peer, PeersAnswer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from support.s3_server import SeaweedS3
    from tonnage.contract import Plan

SLOW = ("--rate", "150000")
"""A rate at which the model takes some seconds, so that something can happen meanwhile."""


class Scene:
    """Two nodes, of which the first has the model, and what the second one loads."""

    def __init__(self, fleet: Fleet, s3: SeaweedS3, bucket: str, tensors: dict[str, torch.Tensor]) -> None:
        self.fleet, self.s3, self.bucket, self.tensors = fleet, s3, bucket, tensors
        self.holder, self.node = fleet.add("holder", serve=False), fleet.add("node", serve=False)
        self.plan: Plan = fleet.plan(source_of(bucket, s3.endpoint))
        self.first = fleet.load(self.holder, self.plan, s3.environment())

    def load(self) -> dict[str, Any]:
        return self.checked(self.fleet.load(self.node, self.plan, self.s3.environment()))

    def checked(self, report: dict[str, Any]) -> dict[str, Any]:
        assert report["outcome"] == "loaded", report
        folder = self.fleet.model_folder(self.node, report)
        assert_tensors_equal(load_safetensors_dir(folder), self.tensors)
        assert (folder / "config.json").read_bytes() == CONFIG
        return report

    def load_with(self, event: Callable[[], None]) -> dict[str, Any]:
        """Loads, and has something happen as soon as the first bytes of the peer are on disk."""
        with self.fleet.loading(self.node, self.plan, self.s3.environment()) as process:
            folder = self.node.media["memory"] / self.first["entry"] / ".tonnage" / "partial"
            deadline = time.monotonic() + 30
            while not any(path.stat().st_size > 400 for path in folder.glob("*/journal")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            event()
            return self.checked(finish(process))


@pytest.fixture
def scene(fleet: Fleet, s3: SeaweedS3, bucket: str, tensors: dict[str, torch.Tensor]) -> Scene:
    return Scene(fleet, s3, bucket, tensors)


@pytest.fixture(params=["tensors", "safetensors"])
def either(
    request: pytest.FixtureRequest,
    fleet: Fleet,
    s3: SeaweedS3,
    bucket: str,
    safetensors_bucket: str,
    tensors: dict[str, torch.Tensor],
) -> Scene:
    """The scene with hashes of tensors, and with a checksum of the store."""
    return Scene(fleet, s3, bucket if request.param == "tensors" else safetensors_bucket, tensors)


def shards(fleet: Fleet, node: Node, report: dict[str, Any]) -> list[Path]:
    return sorted(fleet.model_folder(node, report).glob("*.safetensors"))


def test_a_peer_with_wrong_bytes_is_dropped_and_named(either: Scene) -> None:
    shard = shards(either.fleet, either.holder, either.first)[0]
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0x10]))
    either.fleet.serve(either.holder)
    report = either.load()
    assert [(each["node"], each["reason"]) for each in report["dropped_peers"]] == [("holder", "WrongBytes")], report
    assert any("holder was dropped (WrongBytes)" in note for note in report["notes"]), report


def test_of_two_peers_only_the_one_with_wrong_bytes_is_dropped(either: Scene) -> None:
    fleet = either.fleet
    honest = fleet.add("honest", serve=False)
    shutil.copytree(either.holder.media["memory"], honest.media["memory"], dirs_exist_ok=True)
    for shard in shards(fleet, either.holder, either.first):
        shard.chmod(0o644)
        header = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
        shard.write_bytes(shard.read_bytes()[:header] + bytes(shard.stat().st_size - header))
    fleet.serve(honest)
    fleet.serve(either.holder)
    report = either.load()
    assert [(each["node"], each["reason"]) for each in report["dropped_peers"]] == [("holder", "WrongBytes")], report


def test_a_headers_file_that_does_not_match_its_digest_is_not_used(either: Scene) -> None:
    either.fleet.headers_digest = "0" * 64
    either.fleet.serve(either.holder)
    report = either.load()
    assert report["peer_bytes"] > 0, report
    assert report["headers_digest"] == either.first["headers_digest"]


def test_a_peer_that_is_killed_while_it_serves_costs_nothing_but_its_bytes(either: Scene) -> None:
    either.fleet.serve(either.holder, *SLOW)
    either.load_with(lambda: either.fleet.stop(either.holder, kill=True))


def test_a_peer_that_is_replaced_while_it_serves_is_asked_again(either: Scene) -> None:
    either.fleet.serve(either.holder, *SLOW)

    def replace() -> None:
        either.fleet.stop(either.holder)
        either.fleet.serve(either.holder)

    report = either.load_with(replace)
    assert report["dropped_peers"] == [], report


def test_a_peer_behind_a_network_that_was_cut_does_not_hold_the_load(either: Scene) -> None:
    either.fleet.serve(either.holder)
    either.fleet.hidden.add("holder")
    with StallingProxy(either.holder.address, limit=1 << 20) as proxy:
        either.fleet.extra_peers = [Peer(node="holder", address=proxy.address)]
        report = either.load()
        assert proxy.stalled.is_set()
    assert report["peer_bytes"] < 2 << 20, report


def test_what_a_slow_peer_does_not_send_in_time_comes_from_the_source(scene: Scene) -> None:
    scene.fleet.serve(scene.holder, "--rate", "4000")
    report = scene.load()
    assert report["peer_bytes"] < 2 << 20, report


def test_a_peer_that_serves_as_many_as_it_may_is_not_dropped(scene: Scene) -> None:
    scene.fleet.serve(scene.holder, "--connections", "1")
    report = scene.load()
    assert report["dropped_peers"] == [], report


@pytest.mark.parametrize("address", ["127.0.0.1:1", "192.0.2.1:9443"])
def test_a_peer_that_does_not_answer_is_as_good_as_none(scene: Scene, address: str) -> None:
    scene.fleet.hidden.add("holder")
    scene.fleet.extra_peers = [Peer(node="holder", address=address)]
    assert scene.load()["peer_bytes"] == 0


def test_a_peer_with_another_entry_under_this_name_is_not_asked_for_it(scene: Scene) -> None:
    put_another_entry(scene, scene.holder)
    scene.fleet.serve(scene.holder)
    assert scene.load()["peer_bytes"] == 0


def test_a_peer_with_an_old_revision_only_is_not_asked_for_the_new_one(scene: Scene) -> None:
    new = make_tensors(seed=5, count=4)
    bucket = scene.s3.make_bucket()
    scene.s3.put(bucket, {"model/weights.tensors": to_tensors_file(new), "model/config.json": CONFIG})
    scene.plan, scene.tensors = scene.fleet.plan(source_of(bucket, scene.s3.endpoint)), new
    scene.fleet.serve(scene.holder)
    assert scene.load()["peer_bytes"] == 0


def test_clocks_that_are_too_far_apart_are_named_and_the_source_is_used(scene: Scene) -> None:
    scene.fleet.clock_offset = 3600.0
    scene.fleet.serve(scene.holder)
    report = scene.load()
    assert report["peer_bytes"] == 0
    assert any("a clock is wrong" in note for note in report["notes"]), report


@pytest.mark.parametrize("offset", [-100.0, 100.0])
def test_clocks_that_differ_by_less_than_two_minutes_are_no_obstacle(scene: Scene, offset: float) -> None:
    scene.fleet.clock_offset = offset
    scene.fleet.serve(scene.holder)
    assert scene.load()["peer_bytes"] > 0


def test_a_key_that_is_renewed_while_a_peer_serves_costs_nothing_but_another_pass(scene: Scene) -> None:
    scene.fleet.serve(scene.holder, *SLOW)

    def renew() -> None:
        scene.fleet.key = os.urandom(32)
        (scene.fleet.secrets / "ticket-key").write_bytes(scene.fleet.key)

    report = scene.load_with(renew)
    assert report["dropped_peers"] == [], report


def test_what_a_peer_of_another_release_shows_is_not_used(scene: Scene) -> None:
    entry = scene.holder.media["memory"] / scene.first["entry"]
    manifest = json.loads((entry / ".tonnage" / "manifest.json").read_text())
    (entry / ".tonnage" / "ranges.json").write_text(json.dumps({"schema_version": 99, "digest": manifest["digest"]}))
    scene.fleet.serve(scene.holder)
    assert scene.load()["dropped_peers"] == []


def put_another_entry(scene: Scene, node: Node) -> None:
    """Has a node's cache have another entry under the name of this one."""
    other = scene.s3.make_bucket()
    scene.s3.put(other, {"model/weights.tensors": to_tensors_file(make_tensors(seed=9)), "model/config.json": b"{}"})
    found = scene.fleet.load(node, scene.fleet.plan(source_of(other, scene.s3.endpoint)), scene.s3.environment())
    cache = node.media["memory"]
    shutil.rmtree(cache / scene.first["entry"], ignore_errors=True)
    (cache / found["entry"]).rename(cache / scene.first["entry"])


def test_what_other_nodes_of_a_fleet_never_bring_comes_from_the_source_after_a_wait(scene: Scene) -> None:
    shutil.rmtree(scene.holder.media["memory"])
    scene.holder.media["memory"].mkdir()
    plan = scene.fleet.plan(source_of(scene.bucket, scene.s3.endpoint))
    stuck = msgspec.structs.replace(plan, limits=Limits(workers=1, connections=1, part_size=128 << 10, bandwidth=1024))
    for node in (scene.holder, scene.node):
        scene.fleet.serve(node)
    scene.fleet.share = 3, {"holder": 0, "node": 1}  # the third one has died, and the holder has hardly begun
    with scene.fleet.loading(scene.holder, stuck, scene.s3.environment()):
        report = scene.load()
    assert report["dropped_peers"] == [], report


@pytest.mark.parametrize("others", ["none", "one with another entry"])
def test_nodes_that_load_at_the_same_time_exchange_what_they_have(scene: Scene, others: str) -> None:
    fleet = scene.fleet
    shutil.rmtree(scene.holder.media["memory"])
    scene.holder.media["memory"].mkdir()
    if others != "none":
        put_another_entry(scene, fleet.add("stale"))
    for node in (scene.holder, scene.node):
        fleet.serve(node)
    limits = Limits(workers=1, connections=2, part_size=128 << 10, bandwidth=1 << 20)
    plan = fleet.plan(source_of(scene.bucket, scene.s3.endpoint), limits=limits)
    environment = scene.s3.environment()
    with fleet.loading(scene.holder, plan, environment) as first, fleet.loading(scene.node, plan, environment) as last:
        reports = [finish(first), scene.checked(finish(last))]
    for report in reports:
        assert (report["outcome"], report["dropped_peers"]) == ("loaded", []), report
    assert sum(report["peer_bytes"] for report in reports) > 1 << 20, reports


def test_a_peer_whose_entry_is_evicted_and_replaced_while_it_serves_costs_nothing_but_its_bytes(scene: Scene) -> None:
    other = scene.fleet.add("other", serve=False)
    put_another_entry(scene, other)
    scene.fleet.hidden.add("other")
    scene.fleet.serve(scene.holder, *SLOW)
    entry = scene.holder.media["memory"] / scene.first["entry"]

    def replace() -> None:
        shutil.rmtree(entry)
        shutil.copytree(other.media["memory"] / scene.first["entry"], entry)

    scene.load_with(replace)


def test_a_peer_that_comes_back_at_another_address_is_asked_there(scene: Scene) -> None:
    scene.fleet.serve(scene.holder, *SLOW)

    def move() -> None:
        scene.fleet.stop(scene.holder, kill=True)
        scene.holder.port = free_ports(1)[0]
        scene.fleet.serve(scene.holder)

    assert scene.load_with(move)["dropped_peers"] == []


def test_of_ten_thousand_peers_that_are_all_dead_none_holds_the_load(scene: Scene) -> None:
    scene.fleet.hidden.add("holder")
    scene.fleet.extra_peers = [Peer(node=f"dead-{number}", address="127.0.0.1:1") for number in range(10_000)]
    began = time.monotonic()
    assert scene.load()["peer_bytes"] == 0
    assert time.monotonic() - began < 30


def test_a_controller_that_begins_again_without_keys_takes_no_peer_away(scene: Scene) -> None:
    scene.fleet.serve(scene.holder)
    scene.fleet.interval = 0.1
    scene.plan = msgspec.structs.replace(scene.plan, limits=Limits(workers=1, part_size=128 << 10, bandwidth=2 << 20))

    def begin_again() -> None:
        scene.fleet.controller.answer_peers = lambda _: PeersAnswer(interval=0.1)

    report = scene.load_with(begin_again)
    assert report["peer_bytes"] > 4_500_000, report


def test_a_peer_without_the_access_service_of_this_release_is_not_used(scene: Scene) -> None:
    scene.fleet.key = bytes(32)  # the controller signs with a key that this peer does not know
    scene.fleet.serve(scene.holder)
    report = scene.load()
    assert report["peer_bytes"] == 0
    assert any("signature" in note for note in report["notes"]), report


def test_a_controller_of_another_release_that_knows_no_peers_is_no_obstacle(scene: Scene) -> None:
    scene.fleet.controller.answer_peers = None
    scene.fleet.serve(scene.holder)
    assert scene.load()["peer_bytes"] == 0


def test_a_controller_that_answers_only_once_is_enough(scene: Scene) -> None:
    answer = scene.fleet.controller.answer_peers
    assert answer is not None
    answers = []

    def once(report: Any) -> PeersAnswer:
        answers.append(report)
        if len(answers) > 1:
            scene.fleet.controller.unresponsive = True
        return answer(report)

    scene.fleet.controller.answer_peers = once
    scene.fleet.serve(scene.holder, *SLOW)
    with scene.fleet.loading(scene.node, scene.plan, scene.s3.environment()) as process:
        report = scene.checked(finish(process))
    assert report["peer_bytes"] > 0, report
