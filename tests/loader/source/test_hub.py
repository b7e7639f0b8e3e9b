"""Loads from a hub: judged by ``huggingface_hub``, which downloads from the same server."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

import tonnage
from support.faulty_server import Fault
from support.hub_server import HubServer
from support.tonnage_cli import command_environment, run_tonnage
from tonnage.cache.cache import Cache
from tonnage.cache.verify import verify_entry
from tonnage.contract import HubSource, ObjectPin, Plan, Verify
from tonnage.errors import (
    AccessDenied,
    ChecksumMismatch,
    CredentialsMissing,
    EndpointUnreachable,
    InvalidPlan,
    ObjectNotFound,
    RetriesExhausted,
    SourceChanged,
    StoreUnsupported,
    TonnageError,
)
from tonnage.loading import run_plan
from tonnage.source.client import Client, Request
from tonnage.source.hub_source import _decode, _Info, _redirect, _TreeItem
from tonnage.source.hub_token import HubTokenProvider, find_token
from tonnage.source.request_target import RequestTarget
from tonnage.source.source_uri import parse_sources

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.faulty_server import FaultyServer
    from support.s3_server import SeaweedS3
    from tonnage.cache.manifest import Manifest

REPO = "org/tiny-model"
DOWNLOAD = """
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2], local_dir=sys.argv[3]))
"""
TOKENS = """
import importlib, json, os, sys
from huggingface_hub import constants
from huggingface_hub.utils import build_hf_headers
found = []
for variables in json.loads(sys.argv[1]):
    os.environ.clear()
    os.environ.update(variables)
    importlib.reload(constants)
    found.append(build_hf_headers().get("authorization", "").removeprefix("Bearer "))
print(json.dumps(found))
"""


def model_files() -> dict[str, bytes]:
    """Returns a checkpoint of two shards, an index, a large tokenizer, and files that no load selects."""
    import torch
    from safetensors.torch import save

    tensors = {f"layers.{number}.weight": torch.randn(64, 256) for number in range(8)}
    names = list(tensors)
    files = {
        f"model-0000{at}-of-00002.safetensors": save({name: tensors[name] for name in part})
        for at, part in ((1, names[:4]), (2, names[4:]))
    }
    index = {name: f"model-0000{1 if at < 4 else 2}-of-00002.safetensors" for at, name in enumerate(names)}
    return {
        **files,
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode(),
        "config.json": b'{"model_type": "tiny"}',
        "tokenizer.json": json.dumps({"vocab": {str(number): number for number in range(2000)}}).encode(),
        "chat templates/+ü.jinja": b"{{ messages }}",
        "README.md": b"# A model",
        "pytorch_model.bin": b"\x80" * 5000,
        "original/consolidated.safetensors": files["model-00001-of-00002.safetensors"],
    }


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def files() -> dict[str, bytes]:
    return model_files()


def environment(hub: HubServer, token: str = "", **more: str) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.endpoint, **({"HF_TOKEN": token} if token else {}), **more}


def load(hub: HubServer, cache: Path, source: str = f"hf://{REPO}", *, token: str = "", **options: Any) -> Any:
    return tonnage.load(source, cache=cache, environment=environment(hub, token), verify="best", **options)


def contents(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("path", ["", "/api/huggingface/remote"], ids=["", "a proxy for several hubs"])
def test_the_files_are_those_that_huggingface_hub_downloads_from_the_same_server(
    files: dict[str, bytes], tmp_path: Path, path: str
) -> None:
    """Large files are in Xet storage. Its client and its tokens are not needed, and its hash is none of the bytes."""
    with HubServer(path=path) as hub:
        if path:  # and the repository was renamed, and the endpoint is written with a slash
            hub.moved[REPO] = "new-org/tiny"
            hub.endpoint += "/"
        hub.push(hub.moved.get(REPO, REPO), files, private=True)
        hub.xet = True
        compare_with_huggingface_hub(hub, files, tmp_path)


def compare_with_huggingface_hub(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    report = load(hub, tmp_path / "cache", token=hub.token)
    assert not hub.count("hub", part="xet-read-token")
    assert not hub.count("cdn", part="reconstructions")
    assert (report.verified, report.verified_by) == ("sha256", "Git SHA1: 3 objects, SHA256: 3 objects")
    assert not any(note.startswith("NoChecksum") for note in report.notes)
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "home")}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONWARNINGS": "default"}
    command = [sys.executable, "-c", DOWNLOAD, REPO, "main", str(tmp_path / "judge")]
    subprocess.run(command, env=command_environment(settings), check=True, capture_output=True, timeout=50)
    judged = {path: data for path, data in contents(tmp_path / "judge").items() if not path.startswith(".cache")}
    assert judged == files
    ours = contents(report.path)
    assert ours == {path: judged[path] for path in ours}
    assert set(files) - set(ours) == {"README.md", "pytorch_model.bin", "original/consolidated.safetensors"}


def test_a_hub_and_a_bucket_with_the_same_files_give_equal_entries(
    hub: HubServer, files: dict[str, bytes], s3: SeaweedS3, tmp_path: Path
) -> None:
    hub.push(REPO, files)
    bucket = s3.make_bucket()
    s3.put(bucket, {f"m/{path}": data for path, data in files.items()})
    from_hub = load(hub, tmp_path / "hub")
    from_bucket = tonnage.load(
        f"s3://{bucket}/m/",
        cache=tmp_path / "s3",
        environment=s3.environment(),
        endpoint_url=s3.endpoint,
        verify="best",
    )
    assert contents(from_hub.path) == contents(from_bucket.path)
    assert from_hub.tensors == from_bucket.tensors == 8
    entries = [Cache(Path(report.path).parents[1]).entry(report.entry) for report in (from_hub, from_bucket)]
    first, second = (entry.read_published() for entry in entries)
    assert first is not None
    assert second is not None
    assert first.table == second.table
    assert [record.checksum == "" for record in first.manifest.sources] == [False] * 6
    assert strip_origin(first.manifest) == strip_origin(second.manifest)
    for entry in entries:
        verify_entry(entry)


def strip_origin(manifest: Manifest) -> Manifest:
    """Returns a manifest without what differs between sources of the same files: names, revisions and checksums."""
    return structs.replace(
        manifest,
        revision="",
        digest="",
        created=0,
        table=None,
        verified=Verify.CRC32,
        sources=tuple(
            structs.replace(
                source,
                place="",
                key=source.key.removeprefix("m/"),
                etag="",
                version_id="",
                checksum="",
                verified=Verify.CRC32,
                strongest=Verify.CRC32,
            )
            for source in manifest.sources
        ),
    )


def test_the_token_is_sent_to_the_hub_and_to_no_other_server_and_never_shown(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.push(REPO, files, gated=True)
    done = run_tonnage(
        "load", f"hf://{REPO}", "--cache", tmp_path / "cache", "--verify", "best",
        environment=environment(hub, hub.token),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {each.token for each in hub.requests if each.server == "hub"} == {hub.token}
    assert {each.token for each in hub.requests if each.server == "cdn"} == {""}
    assert hub.count("cdn", "GET") > 0
    assert hub.token not in done.output
    assert hub.token.encode() not in b"".join(contents(tmp_path / "cache").values())


def test_the_token_comes_from_where_huggingface_hub_takes_it_and_from_a_mounted_secret(tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    for path in ("HF_TOKEN", "file", "huggingface/token"):
        (tmp_path / path).write_text("hf_secret\n")
    home = str(tmp_path)
    places: list[dict[str, str]] = [
        {"HF_TOKEN": " hf_secret\n", "HF_TOKEN_PATH": "/none"},
        {"HUGGING_FACE_HUB_TOKEN": "hf_secret"},
        {"HF_TOKEN_PATH": str(tmp_path / "file")},
        {"HF_TOKEN_PATH": "~/file", "HOME": home},
        {"HF_TOKEN_PATH": "$HOME/${NAME}$UNSET", "HOME": home, "NAME": "file", "UNSET": ""},
        {"HF_HOME": "~/huggingface", "HOME": home},
        {"XDG_CACHE_HOME": home, "HOME": "/none"},
        {"XDG_CACHE_HOME": "~", "HOME": home},
        {"HOME": home},
        {"HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "true"},
        {"HF_TOKEN": "hf_secret", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"},
    ]
    command = [sys.executable, "-W", "ignore", "-c", TOKENS, json.dumps(places)]
    judged = json.loads(subprocess.run(command, env=command_environment(), check=True, capture_output=True).stdout)
    assert judged.count("hf_secret") == len(places) - 2
    assert [find_token(each) for each in places] == judged
    mounted = {"TONNAGE_CREDENTIALS_DIR": home, "HF_TOKEN": "other", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    assert find_token(mounted) == "hf_secret"
    with pytest.raises(CredentialsMissing, match="can't be sent") as caught:
        find_token({"HF_TOKEN": "two words"})
    assert "two words" not in caught.value.message


def test_links_that_expire_during_a_load_are_asked_for_again(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.push(REPO, files)
    hub.expire_after = [10, 25]
    plan = Plan(sources=parse_sources([f"hf://{REPO}"]), verify=Verify.BEST)
    plan = with_limits(plan, part_size=16 << 10)
    report = run_plan(plan, cache=tmp_path, environment=environment(hub)).report
    assert contents(report.path)["model-00001-of-00002.safetensors"] == files["model-00001-of-00002.safetensors"]
    links = {each.path for each in hub.requests if each.server == "cdn"}
    assert len(links) > 3, "more than one link to each of three files"


def resolved_objects(hub: HubServer) -> tuple[ObjectPin, ...]:
    resolved = tonnage.resolve(f"hf://{REPO}", environment=environment(hub)).resolved
    assert resolved is not None
    return resolved[0].objects


def with_limits(plan: Plan, **limits: int) -> Plan:
    return structs.replace(plan, limits=structs.replace(plan.limits, **limits))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_flipped_bit_of_a_file_in_git_is_fetched_again_and_then_fails(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    """The index is read twice: by its contents files are selected, then it is one of the files."""
    hub.push(REPO, files)
    at = files[name].rindex(b"2-of") if "index" in name else 3
    hub.damaged_in_git = {name: [at]}
    report = load(hub, tmp_path / "cache")
    assert contents(report.path)[name] == files[name]
    assert not hub.damaged_in_git[name]
    hub.damaged_in_git = {name: [at] * 100}
    with pytest.raises(ChecksumMismatch, match="Git SHA1"):
        load(hub, tmp_path / "other")


def test_a_flipped_bit_of_a_large_file_is_fetched_again_and_then_fails(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.push(REPO, files)
    hub.damaged = [60_000]
    report = load(hub, tmp_path / "once", exclude=["tokenizer*"])
    assert contents(report.path)["model-00001-of-00002.safetensors"] == files["model-00001-of-00002.safetensors"]
    hub.damaged = [60_000] * 100
    with pytest.raises(ChecksumMismatch):
        load(hub, tmp_path / "always", exclude=["tokenizer*"])


@pytest.mark.parametrize(
    ("case", "error", "words"),
    [
        ("gated", AccessDenied, "Accept the model's terms"),
        ("private", ObjectNotFound, "set HF_TOKEN"),
        ("no repository", ObjectNotFound, "Check organization and model"),
        ("no revision", ObjectNotFound, "Check what follows @"),
        ("bad token", AccessDenied, "Create a new token"),
        ("denied", AccessDenied, "Set HF_TOKEN"),
        ("no hub", StoreUnsupported, "HF_ENDPOINT"),
        ("no server", EndpointUnreachable, "endpoint"),
        ("limit", RetriesExhausted, "429"),
    ],
)
def test_a_refusal_has_the_reason_of_the_hub_and_a_remedy(
    case: str, error: type[TonnageError], words: str, hub: HubServer, files: dict[str, bytes], tmp_path: Path,
    faulty_server: FaultyServer,
) -> None:  # fmt: skip
    hub.push(REPO, files, gated=case == "gated", private=case == "private")
    source = {"no repository": "hf://org/other", "no revision": f"hf://{REPO}@v9"}.get(case, f"hf://{REPO}")
    token = "hf_wrong" if case == "bad token" else ""
    settings = environment(hub, token)
    if case == "no hub":
        faulty_server.add_fault(Fault(status=200, body=b"<html>a portal</html>"))
        settings["HF_ENDPOINT"] = faulty_server.url
    if case == "denied":  # by a mirror, without a hub's headers
        faulty_server.add_fault(Fault(status=403, body=b'{"error": "Forbidden"}'))
        settings["HF_ENDPOINT"] = faulty_server.url
    if case == "no server":
        settings["HF_ENDPOINT"] = "http://127.0.0.1:1"
    if case == "limit":
        hub.rate_limits = [{"Retry-After": "100000"}] * 10
    with pytest.raises(error) as caught:
        tonnage.load(source, cache=tmp_path, environment=settings, verify="best")
    assert words in caught.value.message + caught.value.remedy
    assert caught.value.message.startswith(source.partition("@")[0])


@pytest.mark.parametrize("header", [{"Retry-After": "0"}, {"RateLimit": '"resolvers";r=0;t=0'}, {}])
def test_a_rate_limit_is_waited_for(
    header: dict[str, str], hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.push(REPO, files)
    hub.rate_limits = [header]
    report = load(hub, tmp_path)
    assert report.retries == 1


def test_a_long_list_of_files_is_read_page_by_page(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push(REPO, files | {f"notes/{number}.md": b"" for number in range(50)})
    hub.with_sizes, hub.xet = False, True
    hub.page_size = 7
    report = load(hub, tmp_path)
    assert hub.count("hub", "GET", "/tree/") == 9
    assert contents(report.path)["config.json"] == files["config.json"]


def test_a_branch_is_pinned_to_its_commit_and_a_plan_loads_that_commit_later(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    first = hub.push(REPO, files)
    resolved = tonnage.resolve(f"hf://{REPO}", environment=environment(hub))
    objects = resolved_objects(hub)
    assert {pin.version_id for pin in objects} == {first}
    second = hub.push(REPO, {**files, "config.json": b'{"model_type": "newer"}'})
    plan = Plan(sources=(HubSource(repo=REPO, objects=objects),), expected_digest=resolved.digest, verify=Verify.BEST)
    loaded = run_plan(plan, cache=tmp_path, environment=environment(hub)).report
    assert contents(loaded.path)["config.json"] == files["config.json"]
    newer = load(hub, tmp_path)
    assert (newer.revision == loaded.revision, contents(newer.path)["config.json"]) == (
        False,
        b'{"model_type": "newer"}',
    )
    by_commit = load(hub, tmp_path, f"hf://{REPO}@{first}")
    assert (by_commit.outcome, by_commit.revision) == ("hit", loaded.revision)
    assert load(hub, tmp_path, f"hf://{REPO}@{second}").outcome == "hit"


def test_a_hit_downloads_nothing_and_is_denied_to_those_without_access(
    hub: HubServer, files: dict[str, bytes], tmp_path: Path
) -> None:
    hub.push(REPO, files, gated=True)
    load(hub, tmp_path, token=hub.token)
    before = hub.count("cdn")
    assert load(hub, tmp_path, token=hub.token).outcome == "hit"
    assert hub.count("cdn") == before
    with pytest.raises(AccessDenied, match="gated"):
        load(hub, tmp_path)


def test_a_hub_whose_list_and_files_differ_is_refused(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    commit = hub.push(REPO, files)
    objects = resolved_objects(hub)
    hub.repositories[REPO].commits[commit] = {**files, "tokenizer.json": files["tokenizer.json"][:-1] + b" "}
    plan = Plan(sources=(HubSource(repo=REPO, objects=objects),), verify=Verify.BEST)
    with pytest.raises(SourceChanged, match=r"tokenizer\.json"):
        run_plan(plan, cache=tmp_path, environment=environment(hub))


def test_a_plan_with_objects_of_two_commits_is_refused(hub: HubServer, files: dict[str, bytes], tmp_path: Path) -> None:
    hub.push(REPO, files)
    first = resolved_objects(hub)
    hub.push(REPO, files)
    plan = Plan(sources=(HubSource(repo=REPO, objects=(first[0], *resolved_objects(hub)[1:])),))
    with pytest.raises(InvalidPlan, match="one commit"):
        run_plan(plan, cache=tmp_path, environment=environment(hub))


def test_a_link_from_a_hub_with_a_public_address_to_an_inner_one_is_refused(hub: HubServer) -> None:
    def head(**options: Any) -> Any:
        target = RequestTarget(url=hub.link(b"x" * 5000), label="file", redirected_from="8.8.8.8", **options)
        with Client() as client:
            return client.run([Request(target=target, provider=HubTokenProvider(anonymous=True), head=True)])[0]

    assert "from a public to an inner address" in head().failure.message
    assert hub.requests == []
    assert head(inner_redirects=True).failure is None


@pytest.mark.parametrize(
    ("location", "url", "expected"),
    [
        ("/api/resolve-cache/x", "https://hub/org/m/resolve/c/x", "https://hub/api/resolve-cache/x"),
        ("https://cdn/x?sig=1", "https://hub/x", "https://cdn/x?sig=1"),
        ("http://cdn/x", "http://hub/x", "http://cdn/x"),
        ("http://cdn/x", "https://hub/x", None),
        ("//cdn/x", "https://hub/x", None),
        ("file:///etc/passwd", "https://hub/x", None),
        ("", "https://hub/x", None),
    ],
)
def test_a_redirect_leads_to_a_url_and_never_from_https_to_http(location: str, url: str, expected: str | None) -> None:
    from tonnage.source.client import Response

    response = Response(status=302, headers={"location": location}, body=b"")
    if expected is not None:
        assert _redirect(response, url) == expected
        return
    with pytest.raises(EndpointUnreachable):
        _redirect(response, url)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["sha", "siblings", "lfs"]), inner),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_answer_is_understood_or_refused_by_name(body: bytes) -> None:
    for kind in (_Info, list[_TreeItem]):
        with contextlib.suppress(StoreUnsupported):
            _decode(body, kind, "hf://org/m")


@pytest.mark.parametrize(
    ("uri", "repo", "revision"),
    [
        ("hf://org/model", "org/model", "main"),
        ("hf://org/model/", "org/model", "main"),
        ("hf://org/model@v1.0", "org/model", "v1.0"),
        ("hf://org/model@refs/pr/3", "org/model", "refs/pr/3"),
        ("hf://gpt2", "gpt2", "main"),
    ],
)
def test_a_uri_names_repository_and_revision(uri: str, repo: str, revision: str) -> None:
    (source,) = parse_sources([uri])
    assert isinstance(source, HubSource)
    assert (source.repo, source.revision) == (repo, revision)


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://a/b@", "hf://a/../b", "hf://a/b@x y", "hf://a b/c"])
def test_a_uri_that_is_no_repository_is_refused(uri: str) -> None:
    with pytest.raises(InvalidPlan, match="not a repository"):
        parse_sources([uri])


def test_the_table_of_objects_has_their_uris(hub: HubServer, files: dict[str, bytes]) -> None:
    commit = hub.push(REPO, files)
    done = run_tonnage("resolve", f"hf://{REPO}", environment=environment(hub) | {"HOME": os.devnull})
    assert done.returncode == 0, done.stderr
    assert f"hf://{REPO}/config.json" in done.stdout
    assert commit in done.stdout
