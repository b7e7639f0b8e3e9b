"""`hack/kind/cluster.sh`, with stubs of docker, kind, kubectl and helm that record their arguments."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.repository import ROOT

if TYPE_CHECKING:
    from pathlib import Path

STUB = """\
#!/bin/sh
program=${0##*/}
echo "$program $*" >>"$STUB_LOG"
case "$program $*" in
*FAIL*) exit 1 ;;
"docker image inspect"*RepoDigests*) echo "debian@sha256:1234" ;;
"docker image inspect"*) echo "sha256:5678" ;;
"docker save --output "*) echo image >"$3" ;;
"kind get clusters") echo "$STUB_CLUSTERS" ;;
esac
"""


class Stubs:
    """The stub programs, and the script that calls them."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("docker", "kind", "kubectl", "helm"):
            (self.programs / name).write_text(STUB)
            (self.programs / name).chmod(0o755)
        self._log = folder / "log"
        self._environment = {
            **os.environ,
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "STUB_LOG": str(self._log),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }

    def run(self, *arguments: str, clusters: str = "", path: str = "") -> tuple[subprocess.CompletedProcess[str], str]:
        """Runs the script. Returns the result, and the commands of this run, one per line."""
        self._log.write_text("")
        environment = {**self._environment, "STUB_CLUSTERS": clusters}
        command = [str(ROOT / "hack" / "kind" / "cluster.sh"), *arguments]
        done = subprocess.run(
            command, env=environment | ({"PATH": path} if path else {}), capture_output=True, text=True, check=False
        )
        return done, self._log.read_text()


@pytest.fixture
def stubs(tmp_path: Path) -> Stubs:
    return Stubs(tmp_path)


def test_up_builds_and_loads_both_images_and_installs_the_chart(stubs: Stubs) -> None:
    done, log = stubs.run("up")
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^docker build .*--target=(\w+) ", log, re.MULTILINE) == ["loader", "peer", "operator"]
    assert "kind create cluster --name tonnage --wait 120s" in log
    loaded = re.findall(r"^kind load image-archive \S+/([0-9a-f]{16})/(\w+)\.tar --name tonnage$", log, re.MULTILINE)
    assert [image for _, image in loaded] == ["loader", "peer", "operator"]
    (install,) = [line for line in log.splitlines() if line.startswith("helm ")]
    assert install.startswith("helm upgrade --install tonnage charts/tonnage --kube-context kind-tonnage ")
    for component in ("controller", "webhook"):
        assert f"--set-string {component}.podAnnotations.images={loaded[0][0]}" in install
    assert "kubectl --context kind-tonnage get mw,pods" in done.stdout


def test_up_uses_a_cluster_that_exists(stubs: Stubs) -> None:
    done, log = stubs.run("up", clusters="tonnage")
    assert done.returncode == 0, done.stderr
    assert "kind export kubeconfig --name tonnage" in log
    assert "kind create" not in log


def test_up_stops_at_the_first_failure(stubs: Stubs) -> None:
    (stubs.programs / "kind").write_text(STUB.replace("*FAIL*", "*image-archive*"))
    done, log = stubs.run("up")
    assert done.returncode != 0
    assert "helm" not in log


def test_up_names_all_missing_programs(stubs: Stubs, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("sh", "dirname"):
        (tmp_path / "empty" / name).symlink_to(f"/bin/{name}" if name == "sh" else f"/usr/bin/{name}")
    done, log = stubs.run("up", path=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "not installed: docker kind kubectl helm python3." in done.stderr
    assert not log


def test_down_deletes_the_cluster(stubs: Stubs) -> None:
    done, log = stubs.run("down")
    assert done.returncode == 0
    assert log == "kind delete cluster --name tonnage\n"


def test_another_command_is_rejected_with_the_usage(stubs: Stubs) -> None:
    done, log = stubs.run("restart")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    assert not log
