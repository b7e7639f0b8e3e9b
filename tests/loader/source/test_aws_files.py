"""What AWS's files and variables configure for S3: a client of botocore is the judge."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tonnage.contract import S3Source
from tonnage.errors import CredentialsMissing, InvalidPlan, TLSVerificationFailed
from tonnage.source.aws_config import files_have_settings, s3_settings
from tonnage.source.credentials import Botocore
from tonnage.source.endpoint_urls import bucket_url, split_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tonnage.source.aws_config import S3Settings

REGIONS = ["eu-west-1", "us-east-1", "ap-south-1"]
ENDPOINTS = ["http://store.example:9000", "https://objects.example"]
PROFILE = st.fixed_dictionaries(
    {},
    optional={
        "region": st.sampled_from(REGIONS),
        "endpoint_url": st.sampled_from(ENDPOINTS),
        "services": st.just("mine"),
        "use_dualstack_endpoint": st.sampled_from(["true", "false"]),
        "use_fips_endpoint": st.sampled_from(["true", "false"]),
        "ignore_configured_endpoint_urls": st.sampled_from(["true", "false"]),
        "s3": st.fixed_dictionaries(
            {},
            optional={"addressing_style": st.sampled_from(["path", "virtual", "auto"]), "max_queue_size": st.just("9")},
        ).filter(bool),
        "output": st.just("json"),
    },
)
VARIABLES = st.fixed_dictionaries(
    {},
    optional={
        "AWS_DEFAULT_REGION": st.sampled_from(REGIONS),
        "AWS_ENDPOINT_URL": st.sampled_from(ENDPOINTS),
        "AWS_ENDPOINT_URL_S3": st.sampled_from(ENDPOINTS),
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": st.sampled_from(["true", "True", "false"]),
        "AWS_USE_DUALSTACK_ENDPOINT": st.sampled_from(["true", "false"]),
        "AWS_USE_FIPS_ENDPOINT": st.sampled_from(["TRUE", "false"]),
        "AWS_PROFILE": st.just("models"),
    },
)


def section(name: str, values: Mapping[str, object]) -> str:
    lines = [f"[{name}]"]
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{key} =", *(f"  {inner} = {text}" for inner, text in value.items())]
        else:
            lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def process_environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets all variables of AWS for botocore, which reads those of the process."""
    kept = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("AWS_") or name.endswith("_CA_BUNDLE"):
            del os.environ[name]
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


class Captured(Exception):
    """Ends a request of botocore before it is sent."""


def requested_url(client: Any) -> str:
    """Returns the URL that a client of botocore requests for the object ``k`` of the bucket ``bucket``."""
    urls: list[str] = []

    def capture(request: Any, **_: object) -> None:
        urls.append(request.url)
        raise Captured

    client.meta.events.register("before-send.s3.HeadObject", capture)
    with contextlib.suppress(Captured):
        client.head_object(Bucket="bucket", Key="k")
    return urls[0]


@pytest.mark.timeout(240)
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each example creates a client, which is slow
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    config=st.none() | PROFILE,
    models=PROFILE,
    credentials=st.none() | PROFILE.map(lambda values: {k: v for k, v in values.items() if k != "s3"}),
    service=st.none() | st.sampled_from(ENDPOINTS),
    variables=VARIABLES,
)
def test_files_and_variables_mean_what_they_mean_to_botocore(
    tmp_path: Path,
    config: dict[str, object] | None,
    models: dict[str, object],
    credentials: dict[str, object] | None,
    service: str | None,
    variables: dict[str, str],
) -> None:
    values = {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        **variables,
    }
    text = section("default", config) if config is not None else ""
    text += section("profile models", {"output": "json", **models})
    text += section(
        "services mine", {"s3": {"endpoint_url": service}} if service else {"sts": {"endpoint_url": "http://x"}}
    )
    (tmp_path / "config").write_text(text)
    (tmp_path / "credentials").write_text(section("default", credentials) if credentials is not None else "")
    with process_environment(values):
        client = botocore.session.Session().create_client("s3", config=Config(signature_version="s3v4"))
        wanted = split_url(requested_url(client))
        ours = read(values)
    assert wanted is not None
    host = wanted.host.replace("s3.amazonaws.com", "s3.us-east-1.amazonaws.com")  # the same region's older name
    url = split_url(f"{bucket_url(ours.endpoint, 'bucket', ours.addressing_style, aws=ours.aws)}/k")
    assert url is not None
    region = client.meta.region_name
    assert ours.region == ("us-east-1" if region in {None, "aws-global"} else region)
    assert (url.scheme, url.host, url.path) == (wanted.scheme, host, wanted.path)


def read(values: Mapping[str, str]) -> S3Settings:
    with contextlib.closing(Botocore(values)) as process:
        return s3_settings(S3Source(bucket="bucket", prefix=""), values, process.settings)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    return {
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
    }


def test_the_credentials_file_alone_configures_region_and_endpoint(files: dict[str, str]) -> None:
    Path(files["AWS_SHARED_CREDENTIALS_FILE"]).write_text(
        "[default]\nregion = eu-west-3\nendpoint_url = http://store.example\naws_access_key_id = k\n"
    )
    found = read(files)
    assert (found.region, found.endpoint) == ("eu-west-3", "http://store.example")


def test_the_config_file_configures_ca_bundle_and_addressing_style(files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    Path(files["AWS_CONFIG_FILE"]).write_text(
        f"[default]\nca_bundle = {tmp_path}/ca.pem\ns3 =\n  addressing_style = virtual\n"
    )
    found = read({**files, "REQUESTS_CA_BUNDLE": "/gone.pem"})
    assert (found.ca_bundle, found.addressing_style) == (f"{tmp_path}/ca.pem", "virtual")


def test_the_usual_places_are_read_below_the_home_directory(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nregion = eu-west-3\n")
    assert read({"HOME": str(tmp_path)}).region == "eu-west-3"


@pytest.mark.parametrize(
    "name", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]
)
def test_each_variable_for_certificates_is_read(files: dict[str, str], tmp_path: Path, name: str) -> None:
    place = tmp_path / "certificates"
    place.mkdir() if name == "SSL_CERT_DIR" else place.touch()
    assert read({**files, name: f"{place}\n"}).ca_bundle == str(place)
    with pytest.raises(TLSVerificationFailed, match=f"set by {name}"):
        read({**files, name: "/gone"})


def test_settings_in_files_cost_no_process_and_no_session_of_botocore(files: dict[str, str]) -> None:
    Path(files["AWS_CONFIG_FILE"]).write_text("[default]\nregion = eu-west-3\n")
    program = (
        "import os, sys; sys.path[:] = sys.argv[1:]; from tonnage.source.credentials import Botocore; "
        "print(Botocore(os.environ).settings().region, *sys.modules)"
    )
    command = [sys.executable, "-I", "-S", "-c", program, *sys.path]
    region, *modules = subprocess.run(command, env=files, capture_output=True, text=True, check=True).stdout.split()
    assert region == "eu-west-3"
    assert not {"subprocess", "botocore.session", "botocore.compat", "botocore.utils"} & set(modules)


def test_a_section_of_services_that_does_not_exist_is_named(files: dict[str, str]) -> None:
    Path(files["AWS_CONFIG_FILE"]).write_text("[default]\nregion = eu-west-3\nservices = mine\n")
    with pytest.raises(InvalidPlan, match="services mine"):
        read(files)


def test_files_without_settings_of_s3_cost_no_process(files: dict[str, str]) -> None:
    assert not files_have_settings(files)
    Path(files["AWS_SHARED_CREDENTIALS_FILE"]).write_text(
        "[default]\naws_access_key_id = k\naws_secret_access_key = s\n"
    )
    assert not files_have_settings(files)
    Path(files["AWS_CONFIG_FILE"]).write_text("[default]\nREGION = eu-west-1\n")
    assert files_have_settings(files)


def test_a_profile_that_does_not_exist_is_named_with_what_to_set(files: dict[str, str]) -> None:
    Path(files["AWS_CONFIG_FILE"]).write_text("[default]\nregion = eu-west-1\n")
    with pytest.raises(CredentialsMissing, match="nope") as caught:
        read({**files, "AWS_PROFILE": "nope"})
    assert "AWS_PROFILE" in caught.value.remedy


@pytest.mark.parametrize(
    "variables",
    [
        {"AWS_REGION": "us-east-1\n"},
        {"AWS_DEFAULT_REGION": "\tus-east-1\r\n"},
        {"AWS_REGION": "\ufeffus-east-1"},
        {"AWS_ENDPOINT_URL": "http://store.example:9000\n"},
        {"AWS_ENDPOINT_URL_S3": " http://store.example:9000/ "},
    ],
)
def test_white_space_around_values_is_removed(files: dict[str, str], variables: dict[str, str]) -> None:
    found = read({**files, **variables})
    assert found.region == "us-east-1"
    assert found.endpoint in {"https://s3.us-east-1.amazonaws.com", "http://store.example:9000"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AWS_REGION": '"us-east-1"'}, "region"),
        ({"AWS_REGION": "us-east-1\nX-Evil: 1", "AWS_ENDPOINT_URL": "http://store.example"}, "region"),
        ({"AWS_REGION": "us/east", "AWS_ENDPOINT_URL": "http://store.example"}, "region"),
        ({"AWS_ENDPOINT_URL": "http://store.example\r\nX-Evil: 1"}, "endpoint"),
        ({"AWS_ENDPOINT_URL": "http://sto re.example"}, "endpoint"),
        ({"AWS_ENDPOINT_URL": '"http://store.example"'}, "endpoint"),
    ],
)
def test_values_that_can_not_be_sent_are_rejected(files: dict[str, str], variables: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidPlan, match=words):
        read({**files, **variables})


@pytest.mark.parametrize(
    "endpoint", ["https://s3.amazonaws.com", "http://s3.amazonaws.com/", "https://s3-external-1.amazonaws.com"]
)
def test_the_global_host_of_aws_is_that_of_the_region(files: dict[str, str], endpoint: str) -> None:
    found = read({**files, "AWS_ENDPOINT_URL": endpoint, "AWS_REGION": "eu-central-1"})
    assert (found.aws, found.endpoint) == (True, "https://s3.eu-central-1.amazonaws.com")
    assert found.with_region("eu-west-1").endpoint == "https://s3.eu-west-1.amazonaws.com"


def test_a_regional_host_of_aws_is_replaced_if_the_bucket_is_elsewhere(files: dict[str, str]) -> None:
    found = read({**files, "AWS_ENDPOINT_URL": "https://s3.dualstack.us-west-2.amazonaws.com"})
    assert (found.region, found.endpoint) == ("us-west-2", "https://s3.dualstack.us-west-2.amazonaws.com")
    assert found.with_region("eu-west-1").endpoint == "https://s3.dualstack.eu-west-1.amazonaws.com"
