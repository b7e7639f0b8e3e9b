"""Contents and descriptions of the images."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import shlex
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from support.repository import ROOT
from tonnage import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.containers import Image

pytestmark = pytest.mark.timeout(600)

BUILD = ROOT / "hack" / "images" / "build.py"
BUILD_PROGRAMS = re.compile(
    r"^(pip[0-9.]*|uv|gcc.*|g\+\+.*|cc|c\+\+|clang.*|ld|make|cmake|cargo|rustc|go|git|hatch.*|pytest)$"
)
BUILD_PACKAGES = {"pip", "setuptools", "wheel", "hatchling", "uv", "pytest", "hypothesis", "mypy", "ruff"}
KUBERNETES_PACKAGES = {"kopf", "kubernetes", "kubernetes-asyncio", "aiohttp", "pydantic", "prometheus-client"}
UNCHECKED_HASH = 0b01


@pytest.fixture(params=["loader", "peer", "operator"])
def image(request: pytest.FixtureRequest) -> Image:
    """Each of the two images."""
    found: Image = request.getfixturevalue(request.param)
    return found


def options() -> list[str]:
    """Returns the build options of this test run."""
    return shlex.split(os.environ.get("TONNAGE_IMAGE_OPTIONS", ""))


def site_packages(image: Image) -> Path:
    (folder,) = image.root.glob("opt/tonnage/lib/python3.*/site-packages")
    return folder


def locked(*names: str) -> dict[str, str]:
    """Returns the versions that requirement files pin for Linux with Python 3.11, by name."""
    from packaging.requirements import Requirement

    found = {}
    for name in names:
        for line in (ROOT / "requirements" / name).read_text().splitlines():
            if line and not line.startswith((" ", "#")):
                requirement = Requirement(line.rstrip(" \\"))
                if not requirement.marker or requirement.marker.evaluate({"python_full_version": "3.11.2"}):
                    (pin,) = requirement.specifier
                    found[requirement.name] = pin.version
    return found


def test_the_loader_adds_less_than_150_mb_to_its_base(loader: Image) -> None:
    assert sum(loader.layer_sizes[1:]) <= 150_000_000


def test_existing_images_are_not_built_again(build_result: dict[str, Any]) -> None:
    for _ in range(3):  # the sources may be edited at the same time
        found = subprocess.run([sys.executable, BUILD, *options()], capture_output=True, text=True, check=True)
        if not found.stderr:
            break
    assert not found.stderr
    assert json.loads(found.stdout).keys() == build_result.keys()


def test_images_share_all_layers_except_the_last(loader: Image, operator: Image) -> None:
    assert loader.layer_sizes[:-1] == operator.layer_sizes[: len(loader.layer_sizes) - 1]


def test_the_loader_has_exactly_the_locked_packages(loader: Image) -> None:
    assert loader.python_packages() == {**locked("runtime.txt"), "tonnage": __version__}


def test_the_operator_has_exactly_the_locked_packages(operator: Image) -> None:
    assert operator.python_packages() == {**locked("image-operator.txt"), "tonnage": __version__}


def test_no_compiler_installer_or_test_tool_is_installed(image: Image) -> None:
    programs = {
        file.name
        for folder in ("usr/bin", "usr/sbin", "usr/local/bin", "opt/tonnage/bin")
        for file in (image.root / folder).iterdir()
    }
    assert not {name for name in programs if BUILD_PROGRAMS.match(name)}
    assert not BUILD_PACKAGES & image.python_packages().keys()
    modules = {
        file.name.partition("-")[0]
        for folder in image.root.glob("usr/lib/python3*/dist-packages")
        for file in folder.iterdir()
    }
    assert not BUILD_PACKAGES & modules
    assert not list(image.root.glob("**/ensurepip"))


def test_the_loader_has_neither_kubernetes_packages_nor_torch(loader: Image) -> None:
    assert not {"torch", "numpy", *KUBERNETES_PACKAGES} & loader.python_packages().keys()
    assert not (site_packages(loader) / "tonnage_operator").exists()
    assert not list(loader.root.glob("**/tonnage-operator"))


def recorded(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yields the files in the RECORD of installed distributions, with their hashes."""
    for record in folder.glob("*.dist-info/RECORD"):
        for name, digest, _ in csv.reader(record.read_text().splitlines()):
            if digest:
                yield folder / name, digest


def test_every_file_of_a_package_has_the_hash_in_its_record(image: Image) -> None:
    count = 0
    for file, digest in recorded(site_packages(image)):
        kind, _, expected = digest.partition("=")
        found = hashlib.new(kind, file.read_bytes()).digest()
        assert base64.urlsafe_b64encode(found).rstrip(b"=").decode() == expected, file
        count += 1
    assert count > 1000


def test_debian_packages_are_in_the_dpkg_database(image: Image) -> None:
    status = (image.root / "var/lib/dpkg/status").read_text()
    for name in ("python3.11-minimal", "libpython3.11-stdlib", "ca-certificates", "openssl"):
        assert re.search(rf"^Package: {re.escape(name)}$", status, re.MULTILINE), name
    assert (image.root / "etc/ssl/certs/ca-certificates.crt").stat().st_size > 100_000


def test_all_modules_are_compiled_and_never_checked_against_their_sources(image: Image) -> None:
    folder = site_packages(image)
    for source in folder.rglob("*.py"):
        compiled = source.parent / "__pycache__" / f"{source.stem}.cpython-311.pyc"
        assert compiled.exists(), source
        assert compiled.read_bytes()[4] == UNCHECKED_HASH, source


def test_modules_of_the_standard_library_are_compiled(image: Image) -> None:
    for name in ("argparse", "json/decoder", "ssl", "subprocess", "asyncio/events"):
        folder, _, module = f"usr/lib/python3.11/{name}".rpartition("/")
        assert (image.root / folder / "__pycache__" / f"{module}.cpython-311.pyc").exists(), name


def test_nothing_is_left_of_the_build(image: Image) -> None:
    for name in ("build", "out", "root/.cache", "run/secrets", "etc/pip.conf", "etc/apt/apt.conf.d/90build"):
        path = image.root / name
        assert not path.exists() or (path.is_dir() and not list(path.iterdir())), name
    assert not list((image.root / "var/lib/apt/lists").glob("*Packages*"))
    config = image.config
    assert not [value for value in config["Env"] if value.startswith(("PIP_", "http", "HTTP", "DEBIAN_"))]


def test_no_program_is_setuid_or_setgid(image: Image) -> None:
    for file in image.root.rglob("*"):
        if file.is_file() and not file.is_symlink():
            assert not file.stat().st_mode & (stat.S_ISUID | stat.S_ISGID), file


def test_files_of_packages_belong_to_root_and_are_readable_by_all(image: Image) -> None:
    for file in (image.root / "opt/tonnage").rglob("*"):
        found = file.lstat()
        assert (found.st_uid, found.st_gid) == (0, 0), file
        if not file.is_symlink():
            assert found.st_mode & 0o044 == 0o044, file
            assert not found.st_mode & 0o022, file


# Descriptions


def test_both_images_run_as_a_fixed_user_other_than_root(image: Image) -> None:
    assert image.config["User"] == "65532:65532"
    assert "tonnage:x:65532:65532:" in (image.root / "etc/passwd").read_text()


def test_labels_describe_the_image(image: Image, build_result: dict[str, Any]) -> None:
    labels = image.config["Labels"]
    prefix = "org.opencontainers.image."
    target = labels[f"{prefix}title"].removeprefix("tonnage-")
    assert build_result["images"][target]["name"] == f"localhost/tonnage-{target}:{__version__}"
    assert labels[f"{prefix}version"] == __version__
    assert labels[f"{prefix}licenses"] == "Apache-2.0"
    assert labels[f"{prefix}description"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", labels[f"{prefix}revision"])


def test_a_locally_built_base_is_labeled_as_such(image: Image, build_result: dict[str, Any]) -> None:
    labels = image.config["Labels"]
    if build_result["base"].startswith("localhost/"):
        assert labels["dev.tonnage.stand-in-base"] == "true"
        assert "org.opencontainers.image.base.name" not in labels
    else:
        assert labels["org.opencontainers.image.base.digest"].startswith("sha256:")


def test_images_without_a_command_print_help(loader: Image, operator: Image) -> None:
    assert loader.command == ["tonnage", "--help"]
    assert operator.command == ["tonnage-operator", "--help"]


def test_only_the_operator_has_a_health_check(loader: Image, operator: Image) -> None:
    assert loader.config["Healthcheck"]["Test"] == ["NONE"]
    assert operator.config["Healthcheck"]["Test"][0] == "CMD"
