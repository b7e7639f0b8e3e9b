"""Static checks of the Dockerfile and its build context."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.repository import ROOT

TOOLS = ROOT / "hack" / "images"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions, comments left out and continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def shell_commands() -> list[list[str]]:
    """Returns the words of all shell commands."""
    commands: list[list[str]] = [[]]
    for name, text in instructions():
        if name == "RUN":
            lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            for word in lexer:
                if set(word) <= set("&|;()"):
                    commands.append([])
                elif not word.startswith("--mount="):
                    commands[-1].append(word)
            commands.append([])
    return [command for command in commands if command]


def calls(*args: str) -> list[list[str]]:
    """Returns the commands that contain these words in sequence."""
    return [command for command in shell_commands() if " ".join(args) in " ".join(command)]


def test_stages_have_one_base_that_can_be_pinned() -> None:
    stages = set()
    for name, text in instructions():
        if name == "FROM":
            base, _, stage = text.split()
            assert base == "${BASE}" or base in stages, text
            stages.add(stage)
    assert {"loader", "operator"} <= stages
    assert ("ARG", "BASE=docker.io/library/debian:bookworm-slim") in instructions()


def test_distribution_packages_are_pinned() -> None:
    installs = calls("apt-get install")
    assert installs
    for command in installs:
        packages = [word for word in command[command.index("install") + 1 :] if not word.startswith("-")]
        assert packages
        assert all(re.fullmatch(r"[a-z0-9.-]+=[0-9][^*]*(-\*|\*)?", package) for package in packages), packages


def test_python_packages_are_installed_from_wheels_by_hash() -> None:
    installs = [command for command in shell_commands() if any(word.endswith("/pip") for word in command)]
    assert len(installs) == 3
    for command in installs:
        assert "--require-hashes" in command
        assert command[command.index("--only-binary") + 1] == ":all:"
        assert command[-2] == "--requirement"


def test_nothing_else_is_downloaded() -> None:
    for name, text in instructions():
        assert name != "ADD"
        assert not re.search(r"\b(curl|wget|git)\b|https?://(?!127\.0\.0\.1)", text), text


def test_no_setting_of_a_machine_is_committed() -> None:
    for name, text in instructions():
        if name in {"ARG", "ENV"}:
            assert not re.search(r"index|proxy|mirror|token|password|://", text, re.IGNORECASE), text


def test_users_are_numeric() -> None:
    users = [text for name, text in instructions() if name == "USER"]
    assert users == ["65532:65532"] * 3


def copied() -> set[str]:
    """Returns the paths that are copied from the build context, as written."""
    found: set[str] = set()
    for name, text in instructions():
        if name == "COPY" and "--from=" not in text:
            found |= set(text.split()[:-1])
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    return {path for path in found if path != "."} | {
        str(file.relative_to(ROOT)) for rule in allowed for file in ROOT.glob(rule)
    }


def test_copied_paths_are_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for path in copied():
        assert (ROOT / path).exists()
        assert any(Path(path).match(line[1:]) for line in lines if line.startswith("!")), path


def test_the_operator_has_the_loaders_versions() -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text()
        return set(re.findall(r"^([a-z0-9._-]+==[^ ]+)", text, re.MULTILINE))

    assert pins("runtime.txt") <= pins("image-operator.txt")
    assert pins("image-operator.txt") <= pins("test.txt")
    assert pins("image-build.txt") <= pins("test.txt")
    assert {pin.partition("==")[0] for pin in pins("image-build.txt")} >= {"hatchling"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the images' build inputs."""
    script = "import cache_key; print(*cache_key.input_files(), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], cwd=TOOLS, capture_output=True, text=True, check=True)
    for file in map(Path, done.stdout.splitlines()):
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return tmp_path


def key(clone: Path) -> str:
    command = [sys.executable, "-c", "import cache_key; print(cache_key.cache_key('settings'))"]
    return subprocess.run(
        command, cwd=clone / "hack" / "images", capture_output=True, text=True, check=True
    ).stdout.strip()


def test_every_copied_file_is_part_of_the_key(clone: Path) -> None:
    for path in copied():
        assert (clone / path).exists(), path
    keys = {key(clone)}
    for name in ("loader/tonnage/errors.py", "requirements/runtime.txt", "Dockerfile"):
        with (clone / name).open("a") as file:
            file.write("\n")
        keys.add(key(clone))
    assert len(keys) == 4


def test_files_created_at_run_time_are_not_part_of_the_key(clone: Path) -> None:
    before = key(clone)
    folder = clone / "loader" / "tonnage" / "__pycache__"
    folder.mkdir(exist_ok=True)
    (folder / "errors.cpython-311.pyc").write_bytes(b"compiled")
    assert key(clone) == before
