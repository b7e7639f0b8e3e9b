"""This machine's programs, and its settings for package indexes and mirrors.

Run as a program, it installs programs: ``python3 hack/images/host.py runc``.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

EXIT_MISSING_REQUIREMENT = 3
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_CA_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
_CA_IN_BUILD = "/run/secrets/ca.pem"
_APT_SETTING = re.compile(r"^Acquire::(Check-|Retries|ForceIPv4|https?::(Proxy|Timeout))")


class MissingRequirement(Exception):
    """Something is missing on this machine; the message names it and the remedy."""


def log(message: str) -> None:
    print(f"images: {message}", file=sys.stderr, flush=True)


def ensure_programs(programs: Sequence[str]) -> None:
    """Installs missing programs with apt-get, as root. Each program must have the name of its Debian package.

    Raises:
        MissingRequirement: A program is missing and can't be installed.
    """
    missing = [name for name in programs if not shutil.which(name, path=_path())]
    if not missing:
        return
    command = f"apt-get install {' '.join(missing)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise MissingRequirement(f"{', '.join(missing)} not found; please install (as root): {command}")
    log(f"installing {', '.join(missing)} (apt-get)")
    settings = ["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]
    for words in (["update", "-qq"], ["install", *settings, *missing]):
        done = subprocess.run(
            ["apt-get", *words],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise MissingRequirement(f"{done.stdout[-2000:]}\n{command} failed; see its output above.")


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


def build_secrets(folder: Path) -> dict[str, Path]:
    """Writes this machine's settings of pip and apt to files. Returns them by the names of the Dockerfile's secrets.

    Args:
        folder: A private folder that is removed after the build.
    """
    secrets: dict[str, Path] = {}
    pip = pip_settings()
    ca_file = next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), pip.pop("cert", ""))
    pip.pop("cert", None)
    if ca_file and Path(ca_file).is_file():
        secrets["ca.pem"] = Path(ca_file)
        pip["cert"] = _CA_IN_BUILD
    if pip:
        secrets["pip.conf"] = folder / "pip.conf"
        lines = [f"{name} = {value}" for name, value in pip.items()]
        secrets["pip.conf"].write_text("\n".join(["[global]", *lines, ""]))
    if apt := apt_settings():
        secrets["apt.conf"] = folder / "apt.conf"
        secrets["apt.conf"].write_text("\n".join([*apt, ""]))
    return secrets


def pip_settings() -> dict[str, str]:
    """Returns pip's settings on this machine that also apply in a build; the environment takes precedence."""
    home = Path.home()
    own = os.environ.get("PIP_CONFIG_FILE") or os.devnull
    parser = configparser.RawConfigParser()
    parser.read(["/etc/pip.conf", home / ".pip/pip.conf", home / ".config/pip/pip.conf", own])
    found: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            found |= {name: value for name, value in parser[section].items() if name in {*_PIP_SETTINGS, "cert"}}
    if index := os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL"):
        found["index-url"] = index
    for name in _PIP_SETTINGS:
        if value := os.environ.get(f"PIP_{name.upper().replace('-', '_')}"):
            found[name] = value
    return {name: value.replace("\n", "\n    ") for name, value in found.items()}


def apt_settings() -> list[str]:
    """Returns apt's network settings on this machine, as lines of a configuration file."""
    if not shutil.which("apt-config"):
        return []
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return [line for line in done.stdout.splitlines() if _APT_SETTING.match(line) and not line.endswith(' "";')]


def proxy_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns the names of the proxy variables that are set, in lower or upper case."""
    return [name for lower in _PROXIES for name in (lower, lower.upper()) if environment.get(name)]


if __name__ == "__main__":
    try:
        ensure_programs(sys.argv[1:])
    except MissingRequirement as failure:
        log(str(failure))
        sys.exit(EXIT_MISSING_REQUIREMENT)
