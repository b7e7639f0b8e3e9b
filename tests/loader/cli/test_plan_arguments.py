"""Plans from arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tonnage.cli.command_line import parse_command_line
from tonnage.cli.plan_arguments import cache_folder, plan_from_arguments
from tonnage.contract import ComputedBuffers, HttpSource, Layout, Plan, S3Source, Verify, encode_plan, file_selection
from tonnage.contract.plan import DEFAULT_COMPANION_PATTERNS, DEFAULT_TENSOR_PATTERNS
from tonnage.errors import InvalidPlan

if TYPE_CHECKING:
    from pathlib import Path

PLAN = Plan(sources=(S3Source(bucket="models", prefix="llama/"),), verify=Verify.SIZE)


def plan_for(line: str, environment: dict[str, str] | None = None) -> Plan:
    return plan_from_arguments(parse_command_line(line.split(), environment or {}))


def test_options_become_fields_of_the_plan() -> None:
    plan = plan_for(
        "load s3://models/llama/ --endpoint-url http://s3:8333 --region eu-1 --addressing-style virtual --anonymous "
        "--verify sha256 --layout tensorizer --ranks 0,1 --workers 3 --connections 9 --part-size 8Mi "
        "--segment-size 1Gi --bandwidth-limit 400MB --timeout 90 --exclude *.bin --computed-buffers in-shards"
    )
    source = plan.sources[0]
    assert isinstance(source, S3Source)
    assert (source.bucket, source.prefix, source.endpoint) == ("models", "llama/", "http://s3:8333")
    assert (source.region, source.addressing_style, source.anonymous) == ("eu-1", "virtual", True)
    assert (plan.verify, plan.layout) == (Verify.SHA256, Layout.TENSORIZER)
    assert plan.computed_buffers is ComputedBuffers.IN_SHARDS
    assert plan.files.ranks is not None
    assert plan.files.ranks.wanted == (0, 1)
    assert plan.files.exclude == ("*.bin",)
    limits = plan.limits
    assert (limits.workers, limits.connections, limits.part_size) == (3, 9, 8 << 20)
    assert (limits.segment_size, limits.bandwidth, limits.timeout) == (1 << 30, 400_000_000, 90.0)


def test_without_options_the_plan_has_its_defaults() -> None:
    plan = plan_for("load s3://models/llama/")
    assert plan == Plan(sources=(S3Source(bucket="models", prefix="llama/"),))


def test_urls_become_an_http_source() -> None:
    assert isinstance(plan_for("load https://host/x.tensors").sources[0], HttpSource)


def test_a_plan_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(encode_plan(PLAN))
    assert plan_for(f"load --plan {path}") == PLAN


def test_a_plan_in_the_environment_may_be_the_json_itself() -> None:
    assert plan_for("load", {"TONNAGE_PLAN": encode_plan(PLAN).decode()}) == PLAN


def test_a_source_on_the_command_line_overrides_a_plan_from_the_environment() -> None:
    plan = plan_for("load s3://other/x/", {"TONNAGE_PLAN": encode_plan(PLAN).decode()})
    assert plan.sources == (S3Source(bucket="other", prefix="x/"),)


def test_variables_for_options_do_not_conflict_with_a_plan() -> None:
    environment = {"TONNAGE_PLAN": encode_plan(PLAN).decode(), "TONNAGE_VERIFY": "sha256"}
    assert plan_for("load", environment).verify is Verify.SIZE


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("load", "No source given"),
        ("load s3://b/k/ --plan {plan}", "SOURCE and --plan can't be combined"),
        ("load --plan {plan} --verify none", "--verify and --plan can't be combined"),
        ("load --plan {plan} --part-size 0", "--part-size and --plan can't be combined"),
        ("load --plan {plan} --anonymous", "--anonymous and --plan can't be combined"),
        ("resolve --plan {plan} --timeout 5", "--timeout and --plan can't be combined"),
        ("load --plan {plan}.gone", "can't be read: No such file"),
        ("load --plan {garbage}", "not JSON"),
        ("load --plan {binary}", "not valid UTF-8"),
        ("load --plan {empty}", "has no sources"),
        ("load s3://b/k/ --expect-digest abc", "sha256: and 64 hexadecimal digits"),
        ("load s3://b/k/ --endpoint-url http://h --ca-bundle /ca.pem", "--ca-bundle is for https"),
        ("load s3://b/k/ https://h/x.tensors s3:/oops", "s3:/oops"),
    ],
)
def test_contradictory_or_unreadable_arguments_are_an_invalid_plan(line: str, message: str, tmp_path: Path) -> None:
    contents = {
        "plan": encode_plan(PLAN),
        "garbage": b"{]",
        "binary": b"\xff\xfe",
        "empty": encode_plan(Plan(sources=())),
    }
    paths = {name: tmp_path / name for name in contents}
    for name, data in contents.items():
        paths[name].write_bytes(data)
    with pytest.raises(InvalidPlan, match=message):
        plan_for(line.format(**paths))


def test_a_cache_must_be_given() -> None:
    with pytest.raises(InvalidPlan, match="TONNAGE_CACHE"):
        cache_folder(parse_command_line(["load", "s3://b/k/"], {}))


def test_included_tensor_files_replace_all_of_them_and_other_patterns_add_companions() -> None:
    assert file_selection(["a*.tensors"], []).tensors == ("a*.tensors",)
    assert file_selection(["a*.tensors"], []).companions == DEFAULT_COMPANION_PATTERNS
    assert file_selection(["*.py"], []).tensors == DEFAULT_TENSOR_PATTERNS
    assert file_selection(["*.py"], []).companions == (*DEFAULT_COMPANION_PATTERNS, "*.py")
