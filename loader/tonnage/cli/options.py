"""The options of each command, with their help. Defaults are None; ``plan_arguments`` and the commands replace them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tonnage.cli import argument_types
from tonnage.contract.plan import AddressingStyle, ComputedBuffers, Layout, Verify, Weights

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tonnage.cli.parser import Parser

_SOURCE_HELP = "s3://bucket/prefix/, s3://bucket/key.safetensors, hf://organization/model or an http(s):// URL"


def add_load(parser: Parser) -> None:
    """``tonnage load``."""
    source = _add_source_options(parser, "source and cache", f"{_SOURCE_HELP}; several make one model", plan=True)
    help_text = "folder of the cache, created if missing: on a tmpfs such as /dev/shm/tonnage, or on disk"
    _add_option(parser, source, "--cache", "DIR", str, help_text)
    help_text = "instead of a cache: load the files into this folder itself, beside what it has"
    _add_option(parser, source, "--into", "DIR", str, help_text)
    help_text = "with --into: replace another revision there and other files of the same names"
    parser.add_option(source, "--overwrite", action="store_true", help=help_text)
    help_text = "bytes that all its entries may have together; a load that would exceed them fails (default: no limit)"
    _add_option(parser, source, "--capacity", "SIZE", argument_types.parse_size, help_text)
    _add_verification_options(parser)
    _add_server_options(parser)
    tuning = parser.add_argument_group("transfer tuning (0 or unset: automatic)")
    number, size = argument_types.int_range, argument_types.parse_size
    help_text = "transfer processes (default: one for each CPU, fewer for small models)"
    _add_option(parser, tuning, "--workers", "N", number(0, 256), help_text)
    _add_option(parser, tuning, "--connections", "N", number(0, 4096), "connections, over all workers")
    _add_option(parser, tuning, "--part-size", "SIZE", size, "bytes of one request (default: 16Mi)")
    _add_segment_size_option(parser, tuning)
    help_text = "maximum bytes per second, such as 400MB (default: no limit)"
    _add_option(parser, tuning, "--bandwidth-limit", "SIZE", size, help_text)
    _add_timeout_option(parser, tuning)
    after = parser.add_argument_group("output and hold")
    _add_progress_option(parser, after)
    _add_report_options(parser, after)
    parser.add_option(
        after,
        "--hold",
        action="store_true",
        help="after success, keep the entry locked until SIGTERM, so that it is not removed",
    )
    _add_pod_options(parser)
    _add_help_option(parser, after)


def add_hold(parser: Parser) -> None:
    """``tonnage hold``."""
    which = parser.add_argument_group("entries")
    which.add_argument("entries", nargs="+", metavar="ENTRY", help="name, unique prefix of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    help_text = "fail (default) if nothing is loaded in an entry; or continue: hold the others"
    _add_option(parser, other, "--on-failure", "MODE", argument_types.choice("fail", "continue"), help_text)
    _add_help_option(parser, other)


def add_resolve(parser: Parser) -> None:
    """``tonnage resolve``."""
    _add_source_options(parser, "source", f"{_SOURCE_HELP}; several make one model", plan=True)
    checks = parser.add_argument_group("verification")
    _add_expect_digest_option(parser, checks)
    _add_server_options(parser)
    other = parser.add_argument_group("output")
    _add_timeout_option(parser, other)
    _add_json_option(parser, other, "print the report, of kind resolved, as one line of JSON")
    _add_report_options(parser, other)
    _add_help_option(parser, other)


def add_inspect(parser: Parser) -> None:
    """``tonnage inspect``."""
    source = _add_source_options(parser, "source", f"{_SOURCE_HELP}, or a file or folder on this machine", plan=False)
    _add_segment_size_option(parser, source)
    _add_server_options(parser)
    other = parser.add_argument_group("output")
    parser.add_option(
        other,
        "--tensors",
        metavar="N",
        type=parse_tensor_count,
        help="tensors to show of each file: a number, or all (default: 20; --json always has all)",
    )
    _add_timeout_option(parser, other)
    _add_json_option(parser, other, "print the result as one line of JSON")
    _add_help_option(parser, other)


def add_serialize(parser: Parser) -> None:
    """``tonnage serialize``."""
    group = parser.add_argument_group("source and target")
    group.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE... TARGET",
        help="SOURCE: a folder with safetensors files, a state dict that torch.save wrote, s3://bucket/prefix/, "
        "hf://organization/model or an http(s):// URL; TARGET: a new folder, or s3://bucket/prefix/",
    )
    parser.add_option(
        group,
        "--include",
        action="append",
        metavar="GLOB",
        help="repeatable; also copy these companion files (always copied: *.json *.txt *.model *.jinja tokenizer*)",
    )
    parser.add_option(group, "--exclude", action="append", metavar="GLOB", help="repeatable; skip these files")
    help_text = "only these ranks of a source with model-rank-N-part-M.safetensors files (default: all)"
    _add_option(parser, group, "--ranks", "LIST", argument_types.parse_ranks, help_text)
    help_text = "maximum size of a file, unless one tensor is larger (default: one file, if its index has room)"
    _add_option(parser, group, "--file-size", "SIZE", argument_types.parse_size, help_text)
    help_text = "file with 32 bytes, the key to encrypt tensors with; only tensorizer with this key reads them"
    _add_option(parser, group, "--encryption-key", "FILE", str, help_text)
    help_text = "replace files of the same names; a target with any other file is refused"
    parser.add_option(group, "--overwrite", allow_envvar=False, action="store_true", help=help_text)
    help_text = (
        "folder for a source that is loaded first, and for one file at a time before its upload (default: TMPDIR, "
        "then /tmp)"
    )
    _add_option(parser, group, "--scratch", "DIR", str, help_text)
    _add_server_options(parser)
    target = parser.add_argument_group("S3 server of TARGET, if it is another one")
    _add_option(parser, target, "--target-endpoint-url", "URL", str, "its URL (default: that of --endpoint-url)")
    _add_option(parser, target, "--target-region", "NAME", str, "its region (default: that of --region)")
    other = parser.add_argument_group("output")
    _add_progress_option(parser, other)
    _add_json_option(parser, other, "print the result as one line of JSON")
    _add_help_option(parser, other)


def add_ls(parser: Parser) -> None:
    """``tonnage ls``."""
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    _add_json_option(parser, other, "print the entries as one line of JSON")
    _add_help_option(parser, other)


def add_verify(parser: Parser) -> None:
    """``tonnage verify``."""
    which = parser.add_argument_group("entries")
    which.add_argument("entries", nargs="+", metavar="ENTRY", help="name, unique prefix of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    parser.add_option(
        other,
        "--level",
        metavar="LEVEL",
        type=argument_types.enum_choice(Verify),
        help="size: compare names and sizes of files; crc32: read every byte (default); or sha256",
    )
    _add_progress_option(parser, other)
    _add_json_option(parser, other, "print the result as one line of JSON")
    _add_help_option(parser, other)


def add_rm(parser: Parser) -> None:
    """``tonnage rm``."""
    which = parser.add_argument_group("entries")
    which.add_argument("entries", nargs="*", metavar="ENTRY", help="name, unique prefix of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    parser.add_option(
        other, "--all", allow_envvar=False, action="store_true", help="remove all entries that are not in use"
    )
    parser.add_option(
        other,
        "--ignore-not-found",
        action="store_true",
        help="ignore entries that don't exist",
    )
    _add_json_option(parser, other, "print the result for each entry as one line of JSON")
    _add_help_option(parser, other)


def add_version(parser: Parser) -> None:
    """``tonnage version``."""
    other = parser.add_argument_group("options")
    _add_json_option(parser, other, "print one line of JSON, with the versions of Python and libraries too")
    _add_help_option(parser, other)


def add_plugin(parser: Parser) -> None:
    """``tonnage plugin``."""
    where = parser.add_argument_group("target")
    where.add_argument(
        "directory", metavar="DIR", help="existing or new folder, for PYTHONPATH of an engine's container"
    )
    other = parser.add_argument_group("options")
    _add_json_option(parser, other, "print folder and version as one line of JSON")
    _add_help_option(parser, other)


def add_peer(parser: Parser) -> None:
    """``tonnage peer``."""
    action = parser.add_argument_group("action")
    action.add_argument("action", choices=["serve"], metavar="serve", help="serve entries of this node until SIGTERM")
    served = parser.add_argument_group("what is served")
    # Not from the environment: Kubernetes sets TONNAGE_PORT in pods beside a Service of the name tonnage.
    number, size = argument_types.int_range, argument_types.parse_size
    for flag, metavar, parse, text in (
        ("--secrets", "DIR", str, "folder with tls.crt, tls.key, ticket-key and ticket-key-previous (required)"),
        ("--run-dir", "DIR", str, "folder for nginx's temporary files (default: /run/tonnage)"),
        ("--address", "IP", str, "address to listen on, IPv6 in brackets (default: all)"),
        ("--port", "N", number(1, 65535), "TCP port (default: 9443)"),
        ("--connections", "N", number(1, 65535), "connections of all loaders together (default: 512)"),
        ("--connections-per-loader", "N", number(1, 65535), "connections from one address (default: 32)"),
        ("--rate", "SIZE", size, "maximum bytes per second of one connection (default: no limit)"),
        ("--processes", "N", number(0, 256), "processes of nginx (default: 2; 0: one for each CPU)"),
        ("--ca-bundle", "FILE", str, "CAs of the stores that callers prove their access at (default: the system's)"),
    ):
        parser.add_option(served, flag, allow_envvar=False, metavar=metavar, type=parse, help=text)
    help_text = "a medium and its folder, such as memory=/media/memory; repeatable (required)"
    parser.add_option(
        served,
        "--media",
        allow_envvar=False,
        action="append",
        metavar="NAME=DIR",
        type=argument_types.medium,
        help=help_text,
    )
    help_text = "send proofs also to stores at loopback and link-local addresses"
    parser.add_option(served, "--local-stores", allow_envvar=False, action="store_true", help=help_text)
    _add_help_option(parser, served)


OPTION_ADDERS: dict[str, Callable[[Parser], None]] = {
    "load": add_load,
    "hold": add_hold,
    "resolve": add_resolve,
    "inspect": add_inspect,
    "serialize": add_serialize,
    "ls": add_ls,
    "verify": add_verify,
    "rm": add_rm,
    "plugin": add_plugin,
    "peer": add_peer,
    "version": add_version,
}


def parse_tensor_count(text: str) -> int:
    """Returns the number of tensors to show; -1 for ``all``.

    Raises:
        ArgumentTypeError: It is neither a number nor ``all``.
    """
    return -1 if text.strip().lower() == "all" else argument_types.int_range(0, 10**9)(text)


def _add_source_options(parser: Parser, title: str, sources: str, *, plan: bool) -> argparse._ArgumentGroup:
    group = parser.add_argument_group(title)
    group.add_argument("sources", nargs="*" if plan else "+", metavar="SOURCE", help=sources)
    if plan:
        help_text = "use a plan (JSON) instead of SOURCE and the options that a plan has; - reads standard input"
        _add_option(parser, group, "--plan", "FILE", str, help_text)
    help_text = (
        "files that are the weights: tensorizer (.tensors), safetensors, or auto (default): .tensors files, or "
        ".safetensors files where there are none"
    )
    _add_option(parser, group, "--weights", "KIND", argument_types.enum_choice(Weights), help_text)
    parser.add_option(
        group,
        "--include",
        action="append",
        metavar="GLOB",
        help="repeatable; a glob that ends in .tensors or .safetensors: of these files, load only those; any other: "
        "also load these companion files (always loaded: *.json *.txt *.model *.jinja tokenizer*)",
    )
    parser.add_option(group, "--exclude", action="append", metavar="GLOB", help="repeatable; skip these files")
    help_text = "load only these ranks of a model in files of ranks, such as 0-3 or 0,2,5-7 (default: all)"
    _add_option(parser, group, "--ranks", "LIST", argument_types.parse_ranks, help_text)
    help_text = (
        "files in the cache: safetensors, which any engine reads (default; .safetensors files stay as they are); or "
        "tensorizer, the .tensors files byte for byte"
    )
    _add_option(parser, group, "--layout", "NAME", argument_types.enum_choice(Layout), help_text)
    help_text = (
        "where the safetensors layout has buffers that engines compute themselves, such as rotary frequencies: "
        "separate, in a file that engines don't list (default); or in-shards"
    )
    kind = argument_types.enum_choice(ComputedBuffers)
    _add_option(parser, group, "--computed-buffers", "PLACE", kind, help_text)
    return group


def _add_verification_options(parser: Parser) -> None:
    group = parser.add_argument_group("verification")
    parser.add_option(
        group,
        "--verify",
        metavar="LEVEL",
        type=argument_types.enum_choice(Verify),
        help="best: by the best checksum there is (default); crc32, sha256: fail without one; size; none",
    )
    help_text = "verify what is already in the cache with hashes that are read from the source now, not only its size"
    parser.add_option(group, "--verify-on-hit", action="store_true", help=help_text)
    _add_expect_digest_option(parser, group)


def _add_server_options(parser: Parser) -> None:
    group = parser.add_argument_group("S3 server (credentials come from the environment, see below)")
    _add_option(parser, group, "--endpoint-url", "URL", str, "its URL (default: AWS_ENDPOINT_URL_S3, then AWS)")
    _add_option(
        parser, group, "--region", "NAME", str, "its region (default: AWS_REGION, the profile's, then us-east-1)"
    )
    _add_option(
        parser,
        group,
        "--addressing-style",
        "STYLE",
        argument_types.enum_choice(AddressingStyle),
        "where a URL has the bucket: path, virtual (in the host name) or auto (default)",
    )
    _add_option(
        parser, group, "--ca-bundle", "FILE", str, "PEM file of trusted CAs (default: AWS_CA_BUNDLE, then the system's)"
    )
    parser.add_option(group, "--anonymous", action="store_true", help="don't sign requests; for public buckets")
    help_text = "pay for requests and transfer; for buckets whose owner demands it (x-amz-request-payer)"
    parser.add_option(group, "--requester-pays", action="store_true", help=help_text)


def _add_expect_digest_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "fail if the source has another revision; `tonnage resolve` prints the digest"
    _add_option(parser, group, "--expect-digest", "DIGEST", str, help_text)


def _add_segment_size_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "maximum size of a shard, unless one tensor is larger (default: 256Mi to 4Gi, for about 16 shards)"
    _add_option(parser, group, "--segment-size", "SIZE", argument_types.parse_size, help_text)


def _add_cache_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add_option(parser, group, "--cache", "DIR", str, "folder of the cache")


def _add_progress_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = (
        "on standard error: bar, json (a line per second), off, or auto (default): bar on a terminal, otherwise json"
    )
    _add_option(parser, group, "--progress", "KIND", argument_types.choice("auto", "bar", "json", "off"), help_text)


def _add_timeout_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "fail if it takes longer in total, in seconds or as 10m, 1h (default: no limit)"
    _add_option(parser, group, "--timeout", "TIME", argument_types.parse_duration, help_text)


def _add_json_option(parser: Parser, group: argparse._ArgumentGroup, help_text: str) -> None:
    parser.add_option(group, "--json", action="store_true", help=help_text)


def _add_report_options(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add_option(parser, group, "--report", "FILE", str, "also write the report to this file, atomically")
    help_text = "also write the report to this file in place, in at most 4096 bytes; in Kubernetes /dev/termination-log"
    _add_option(parser, group, "--termination-log", "FILE", str, help_text)


def _add_pod_options(parser: Parser) -> None:
    group = parser.add_argument_group("in a pod")
    help_text = "created when the pod may start, removed before the load; for a startup probe"
    _add_option(parser, group, "--ready-file", "FILE", str, help_text)
    parser.add_option(
        group,
        "--stream",
        action="store_true",
        help="let the pod start, and readers that wait read the files, while they are loaded",
    )
    help_text = "created when nothing more will be loaded; for a readiness probe, with --stream"
    _add_option(parser, group, "--loaded-file", "FILE", str, help_text)
    parser.add_option(
        group,
        "--status-file",
        allow_envvar=False,  # applications have TONNAGE_STATUS_FILE, which must not set this option
        metavar="FILE",
        help="for applications: loading; then ready; or failed, the reason and the message, one per line",
    )
    help_text = (
        "fail (default); or continue: let the pod start without weights, and exit with 0, or keep running with --hold"
    )
    _add_option(parser, group, "--on-failure", "MODE", argument_types.choice("fail", "continue"), help_text)
    parser.add_option(
        group,
        "--artifacts",
        action="append",
        metavar="DIR",
        help="repeatable; prepare this folder for what an engine compiles at its start, and report its size",
    )
    help_text = "write vLLM's plugin into this folder first, as `tonnage plugin` does"
    _add_option(parser, group, "--plugin", "DIR", str, help_text)


def _add_help_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this help and exit")
    parser.set_defaults(from_environment=())


def _add_option(
    parser: Parser,
    group: argparse._ArgumentGroup,
    name: str,
    metavar: str,
    kind: Callable[[str], object],
    help_text: str,
) -> None:
    parser.add_option(group, name, metavar=metavar, type=kind, help=help_text)
