"""The repository itself: layout, pinned requirements, links, and commands of the documentation."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from support.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.s3_server import SeaweedS3

REQUIREMENTS = sorted((ROOT / "requirements").glob("*.txt"))
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
BLOCK = re.compile(r"<!-- run: (\w+).*?-->\n```(\w+)\n(.*?)```", re.DOTALL)
FENCE = re.compile(r"^```(console|python)$", re.MULTILINE)
DOCUMENTED_CACHE = "/dev/shm/tonnage"


def blocks(kind: str) -> list[str]:
    """Returns the README's code blocks that are marked with ``kind``."""
    return [text for how, _, text in BLOCK.findall((ROOT / "README.md").read_text()) if how == kind]


def commands(block: str) -> list[str]:
    """Returns the command lines of a console block."""
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def run(
    command: list[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command and returns its standard output; fails with its output unless it exits with 0."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


# Layout


def test_no_package_file_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_source_files_have_a_maximum_length() -> None:
    sources = [*(ROOT / "loader").rglob("*.py"), *(ROOT / "operator").rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in sources}
    assert not {name: length for name, length in lengths.items() if length > 500}


def test_shell_scripts_are_well_formed() -> None:
    for script in [*(ROOT / "hack").rglob("*.sh"), ROOT / ".ci" / "run"]:
        run(["bash", "-n", str(script)])
        assert os.access(script, os.X_OK), script


def test_every_test_is_in_one_group_and_results_are_counted() -> None:
    from env import run_tests

    groups = run_tests.find_tests()
    assert all(groups.values()), "a group without tests"
    found = [ROOT / each for group in groups.values() for each in group]
    assert sorted(found) == sorted((ROOT / "tests").rglob("test_*.py"))
    assert "tests/e2e/test_serving.py" in groups["pods"]
    assert "tests/e2e/test_memory.py" in groups["node"]
    closing = "=== 1 failed, 12 passed, 3 skipped, 2 errors in 61.00s (0:01:01) ==="
    printed = f"FAILED tests/a.py::b - 2 failed\n{closing}\nleaked 3 types!\n"
    assert run_tests.parse_summary_counts(printed) == {"failed": 1, "passed": 12, "skipped": 3, "error": 2}
    assert not run_tests.parse_summary_counts("")
    assert run_tests.read_idle_seconds("cpu  9 9 9 100 50 9 9 9 0 0\ncpu0 9") == 150 / os.sysconf("SC_CLK_TCK")


MAKE = """#!/bin/sh
echo "make $*"
case $1 in
check) touch "$BEGUN/check"
    until [ -e "$BEGUN/test" ]; do sleep 0.1; done
    exit "$CHECK" ;;
test) trap 'echo ended; kill $!; exit 1' TERM
    touch "$BEGUN/test"
    until [ -e "$BEGUN/check" ]; do sleep 0.1; done
    [ "$CHECK" = 0 ] || { sleep 50 & wait; }
    exit "$TEST" ;;
esac
"""
"""A program that is called in place of make; its tests last until they are ended if a check fails."""


@pytest.mark.parametrize(("check", "test"), [(0, 0), (0, 2), (2, 0)])
def test_ci_runs_every_check_and_all_tests_and_fails_with_any_of_them(tmp_path: Path, check: int, test: int) -> None:
    make = tmp_path / "make"
    make.write_text(MAKE)
    make.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "BEGUN": str(tmp_path),
        "CHECK": str(check), "TEST": str(test),
    }  # fmt: skip
    done = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == max(check, test)
    first, *lines = done.stdout.splitlines()
    assert first == "make setup"
    assert set(lines) == {"make check", "make test", *(["ended"] if check else [])}


def test_what_make_starts_keeps_what_it_compiles() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    shown = run(["make", "--no-print-directory", "--eval=show:; @env", "show"], cwd=ROOT, env=environment).stdout
    assert "PATH=" in shown
    assert "PYTHONDONTWRITEBYTECODE=" not in shown


def test_what_one_clone_has_computed_is_kept_for_the_next(tmp_path: Path) -> None:
    def kept(*arguments: str | Path) -> None:
        run([str(ROOT / "hack/env/kept.sh"), *map(str, arguments)], env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})

    one, other = tmp_path / "one", tmp_path / "other"
    (one / "a" / "b").mkdir(parents=True)
    for name in ("a/b/old.pyc", "a/new.pyc", "a/source.py"):
        (one / name).write_text("kept")
    kept("restore", "bytecode", other)
    assert not other.exists()
    kept("save", "bytecode", one, "*.pyc")
    (other / "a" / "b").mkdir(parents=True)
    (other / "a" / "b" / "old.pyc").write_text("its own")
    kept("restore", "bytecode", other)
    found = {str(path.relative_to(other)): path.read_text() for path in other.rglob("*") if path.is_file()}
    assert found == {"a/b/old.pyc": "its own", "a/new.pyc": "kept"}
    (tmp_path / "tonnage").rename(tmp_path / "gone")
    (tmp_path / "tonnage").write_text("no folder")
    kept("save", "bytecode", one)


def test_the_license_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


# Pins


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda file: file.name)
def test_requirements_are_exact_hashed_and_name_no_index(file: Path) -> None:
    text = file.read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text
    for requirement in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,_-]+\])?==[^ ]+ ", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    extras = [name for extra in project["project"]["optional-dependencies"].values() for name in extra]
    runtime = project["project"]["dependencies"]
    needed = {
        "runtime": runtime,
        "test": [*runtime, *extras, *groups["build"], *groups["test"]],
        "lint": [*runtime, *extras, *groups["lint"], *groups["test"]],
        "bench": [*runtime, *extras, *groups["bench"]],
    }
    for name, requirements in needed.items():
        pinned = (ROOT / "requirements" / f"{name}.txt").read_text()
        for requirement in requirements:
            package = re.match(r"[A-Za-z0-9._-]+", requirement)
            assert package
            assert re.search(rf"^{re.escape(package[0])}==", pinned, re.MULTILINE), (
                f"make lock: {package[0]} in {name}.txt"
            )


# Documentation


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_between_files_have_targets(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", file.read_text()):
        if "://" not in target:
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_every_code_block_of_the_readme_is_marked_with_how_it_is_run() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(BLOCK.findall(text)) == len(FENCE.findall(text))
    assert {how for how, _, _ in BLOCK.findall(text)} == {"make", "wheel", "shell", "python", "cluster", "never"}


def test_documented_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks("make"):
        for command in commands(block):
            assert command.split()[1] in targets
    for file in (ROOT / "CONTRIBUTING.md", ROOT / "docs" / "performance" / "README.md"):
        for words in re.findall(r"`make ([a-z0-9 -]+)", file.read_text()):
            assert set(words.split()) <= targets, words


def test_help_lists_every_target_of_the_makefile() -> None:
    listed = set(re.findall(r"^  make ([a-z0-9-]+)", run(["make", "help"], cwd=ROOT).stdout, re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert listed == set(phony[1].split())


def test_the_image_is_up_to_date_with_its_script(tmp_path: Path) -> None:
    script = shutil.copy(ROOT / "docs" / "images" / "flow.py", tmp_path)
    run([sys.executable, str(script)])
    assert (tmp_path / "flow.svg").read_text() == (ROOT / "docs" / "images" / "flow.svg").read_text()


def test_the_wheel_has_only_the_packages(tmp_path: Path) -> None:
    assert [command.split("#")[0].split()[:2] for command in commands(blocks("wheel")[0])] == [["pip", "install"]] * 2
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), "."], cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "tonnage/py.typed" in names
    assert "tonnage/cli/main.py" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"tonnage", "tonnage_operator"}


@pytest.fixture
def documented(s3: SeaweedS3, tmp_path: Path) -> Mapping[str, str]:
    """An environment for the README's commands: a checkpoint is in `s3://models/llama/`, `tonnage` is in PATH."""
    save_file({f"layers.{n}.weight": torch.rand(64, 64) for n in range(4)}, tmp_path / "model.safetensors")
    s3.client().create_bucket(Bucket="models")
    s3.put("models", {"llama/model.safetensors": tmp_path / "model.safetensors", "llama/config.json": b"{}"})
    programs = tmp_path / "bin"
    programs.mkdir()
    if not shutil.which("jq"):
        jq = programs / "jq"
        jq.write_text(
            f"#!{sys.executable}\nimport json, sys\nprint(json.load(sys.stdin)[sys.argv[2].removeprefix('.')])\n"
        )
        jq.chmod(0o755)
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, **s3.environment(), "PATH": path}


@pytest.mark.timeout(300)
def test_the_readme_commands_work(documented: Mapping[str, str], tmp_path: Path) -> None:
    for block in blocks("shell"):
        script = "\n".join(["set -euo pipefail", *commands(block)]).replace(DOCUMENTED_CACHE, str(tmp_path / "cache"))
        done = run(["bash", "-c", script], env=documented, cwd=tmp_path)
    assert done.stdout.split() == ["config.json", "model.safetensors"]
    (python,) = blocks("python")
    script = python.replace(DOCUMENTED_CACHE, str(tmp_path / "cache"))
    done = run([sys.executable, "-c", script], env=documented, cwd=tmp_path)
    assert done.stdout.startswith("hit r-")
    assert "4 tensors" in done.stdout


# The demo and the benchmark


def demo(directory: Path, *options: str) -> subprocess.Popen[str]:
    """Starts the small demo with its temporary folder below ``directory``."""
    command = [sys.executable, str(ROOT / "examples" / "demo" / "demo.py"), "--small", "--directory", str(directory)]
    return subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(300)
def test_the_demo_ends_with_an_engine_that_answers_from_the_cache_and_cleans_up(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with demo(tmp_path, "--cache", str(cache)) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    assert re.findall(r"^(\d+)/11 ", output, re.MULTILINE) == [str(step) for step in range(1, 12)]
    last = output.partition("\n11/11 ")[2]
    assert re.search(rf"\$ python examples/demo/generate.py {cache}/\S+ ", last)
    assert "The original model gives the same tokens." in last
    assert output.endswith("All checks passed.\n")
    assert list(tmp_path.iterdir()) == [cache]
    assert list(cache.glob("*/model/config.json"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    with demo(tmp_path) as process:
        assert process.stdout
        for line in process.stdout:
            if "It listens on" in line:
                break
        port = line.strip().rstrip(".").rpartition(":")[2]
        process.send_signal(number)
        process.communicate()
    assert process.returncode == 128 + number
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 10
    while listens(int(port)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(int(port))


def listens(port: int) -> bool:
    """Returns whether a process listens on this port of loopback."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines)


@pytest.mark.timeout(300)
def test_the_benchmark_measures_and_writes_its_results(tmp_path: Path) -> None:
    script = str(ROOT / "benchmarks" / "loader" / "bench.py")
    size = ["--size", "24M", "--repetitions", "1", "--hits", "1", "--no-tuning"]
    contenders = ["--contenders", "floor", "tonnage", "tonnage-unverified", "--server", "sendfile"]
    done = run([sys.executable, script, *size, *contenders, "--output", str(tmp_path), "--name", "small"])
    table = (tmp_path / "small.md").read_text()
    assert done.stdout.startswith(table)
    assert "| Tonnage | CRC-32 | tmpfs |" in table
    assert "× its throughput" in table
    assert "of a cache hit, whole process" in table
    assert '"first_request_ms"' in (tmp_path / "small.json").read_text()
