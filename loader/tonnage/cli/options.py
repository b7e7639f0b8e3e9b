"""The options of each command, with their help. Defaults are None: their meaning is decided elsewhere."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

from tonnage.cli import argument_types
from tonnage.contract.plan import AddressingStyle, Layout, Verify

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tonnage.cli.command_line import Parser

PROGRESS_KINDS = ("auto", "bar", "json", "off")
FAILURE_MODES = ("fail", "continue")

_SOURCE_HELP = "s3://bucket/key.tensors, s3://bucket/prefix/ or an http(s):// URL"


def add_load(parser: Parser) -> None:
    """``tonnage load``."""
    what = _add_source_options(
        parser, sources=f"{_SOURCE_HELP}; several make one model", layout=True, ranks=True, plan=True
    )
    parser.add_option(
        what,
        "--cache",
        metavar="DIR",
        help="folder of the cache, made where it is missing; a tmpfs such as /dev/shm/tonnage or a folder on disk",
    )
    _add_verification_options(parser)
    _add_server_options(parser)
    speed = parser.add_argument_group("how fast (0 or absent: found out by itself)")
    number, size = argument_types.int_range, argument_types.parse_size
    _add_option(
        parser, speed, "--workers", "N", number(0, 256), "processes (default: one a processor, fewer for little)"
    )
    _add_option(parser, speed, "--connections", "N", number(0, 4096), "connections of all of them together")
    _add_option(parser, speed, "--part-size", "SIZE", size, "bytes asked for at a time (default: 16Mi)")
    _add_segment_size_option(parser, speed)
    _add_option(
        parser, speed, "--bandwidth-limit", "SIZE", size, "bytes a second at most, such as 400MB (default: no limit)"
    )
    _add_option(
        parser,
        speed,
        "--timeout",
        "TIME",
        argument_types.parse_duration,
        "give up after this long in all, in seconds or as 10m, 1h (default: never)",
    )
    after = parser.add_argument_group("output and afterwards")
    _add_progress_option(parser, after)
    _add_report_options(parser, after)
    parser.add_option(
        after,
        "--hold",
        action="store_true",
        help="after success keep the entry in use until SIGTERM, so that nobody removes it",
    )
    _add_pod_options(parser)
    _add_help_option(parser, after)


def add_resolve(parser: Parser) -> None:
    """``tonnage resolve``."""
    _add_source_options(parser, sources=f"{_SOURCE_HELP}; several make one model", layout=True, ranks=True, plan=True)
    checks = parser.add_argument_group("how to check")
    _add_expect_digest_option(parser, checks)
    _add_server_options(parser)
    other = parser.add_argument_group("output")
    _add_timeout_option(parser, other)
    _add_json_option(parser, other, "print the report (kind resolved) as one line of JSON")
    _add_report_options(parser, other)
    _add_help_option(parser, other)


def add_inspect(parser: Parser) -> None:
    """``tonnage inspect``."""
    what = _add_source_options(
        parser, sources=f"{_SOURCE_HELP}, or a .tensors file on this machine", layout=True, ranks=True, plan=False
    )
    _add_segment_size_option(parser, what)
    _add_server_options(parser)
    other = parser.add_argument_group("output")
    parser.add_option(
        other,
        "--tensors",
        metavar="N",
        type=parse_tensor_count,
        help="tensors shown of each file: a number, or all (default: 20; with --json always all)",
    )
    _add_timeout_option(parser, other)
    _add_json_option(parser, other, "print everything as one line of JSON")
    _add_help_option(parser, other)


def add_ls(parser: Parser) -> None:
    """``tonnage ls``."""
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    _add_json_option(parser, other, "print the entries as one line of JSON")
    _add_help_option(parser, other)


def add_verify(parser: Parser) -> None:
    """``tonnage verify``."""
    which = parser.add_argument_group("which")
    which.add_argument("entries", nargs="+", metavar="ENTRY", help="name, beginning of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    parser.add_option(
        other,
        "--level",
        metavar="LEVEL",
        type=argument_types.enum_choice(Verify),
        help="how far: size (names and sizes of files, instantly), crc32 (reads every byte; the default) or sha256",
    )
    _add_progress_option(parser, other)
    _add_json_option(parser, other, "print what was found as one line of JSON")
    _add_help_option(parser, other)


def add_rm(parser: Parser) -> None:
    """``tonnage rm``."""
    which = parser.add_argument_group("which")
    which.add_argument("entries", nargs="*", metavar="ENTRY", help="name, beginning of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _add_cache_option(parser, other)
    parser.add_option(other, "--all", allow_envvar=False, action="store_true", help="every entry that nobody uses")
    parser.add_option(
        other,
        "--ignore-not-found",
        action="store_true",
        help="an entry that is not there is no failure: there is nothing to remove",
    )
    _add_json_option(parser, other, "print what was removed and what was not as one line of JSON")
    _add_help_option(parser, other)


def add_version(parser: Parser) -> None:
    """``tonnage version``."""
    other = parser.add_argument_group("options")
    _add_json_option(parser, other, "print it as one line of JSON, with the versions of what it is built on")
    _add_help_option(parser, other)


OPTION_ADDERS: dict[str, Callable[[Parser], None]] = {
    "load": add_load,
    "resolve": add_resolve,
    "inspect": add_inspect,
    "ls": add_ls,
    "verify": add_verify,
    "rm": add_rm,
    "version": add_version,
}


def parse_tensor_count(text: str) -> int:
    """Returns how many tensors to show; -1 for ``all``.

    Raises:
        ArgumentTypeError: It is neither a number nor ``all``.
    """
    return -1 if text.strip().lower() == "all" else argument_types.int_range(0, 10**9)(text)


def parse_progress_choice(text: str) -> str:
    """Returns a way to show progress.

    Raises:
        ArgumentTypeError: It is none of them.
    """
    return _choice(text, PROGRESS_KINDS)


def parse_on_failure(text: str) -> str:
    """Returns what is to become of a pod whose load fails.

    Raises:
        ArgumentTypeError: It is none of the possibilities.
    """
    return _choice(text, FAILURE_MODES)


def _choice(text: str, words: tuple[str, ...]) -> str:
    word = text.strip().lower()
    if word not in words:
        raise ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
    return word


def _add_source_options(
    parser: Parser, *, sources: str, layout: bool, ranks: bool, plan: bool
) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("what to load" if plan else "what to look at")
    group.add_argument("sources", nargs="*" if plan else "+", metavar="SOURCE", help=sources)
    if plan:
        _add_option(
            parser,
            group,
            "--plan",
            "FILE",
            str,
            "a plan (JSON) instead of SOURCE and all options that a plan has; - reads it from standard input",
        )
    parser.add_option(
        group,
        "--include",
        action="append",
        metavar="GLOB",
        help="repeatable. One that ends in .tensors: of the tensor files only these. Any other: these companions too "
        "(always brought: *.json *.txt *.model *.jinja tokenizer*)",
    )
    parser.add_option(group, "--exclude", action="append", metavar="GLOB", help="repeatable: leave these files out")
    if ranks:
        _add_option(
            parser,
            group,
            "--ranks",
            "LIST",
            argument_types.parse_ranks,
            "of a model in model-rank-NNN.tensors files only these, such as 0-3 or 0,2,5-7 (default: all)",
        )
    if layout:
        _add_option(
            parser,
            group,
            "--layout",
            "NAME",
            argument_types.enum_choice(Layout),
            "form in the cache: safetensors, shards that any engine reads (default), or tensorizer, the .tensors files "
            "byte for byte",
        )
    return group


def _add_verification_options(parser: Parser) -> None:
    group = parser.add_argument_group("how to verify")
    parser.add_option(
        group,
        "--verify",
        metavar="LEVEL",
        type=argument_types.enum_choice(Verify),
        help="crc32, every tensor's hash while it arrives (default); sha256, where the files state one; size; none",
    )
    _add_expect_digest_option(parser, group)


def _add_server_options(parser: Parser) -> None:
    group = parser.add_argument_group("where from (credentials come from the environment, see below)")
    _add_option(parser, group, "--endpoint-url", "URL", str, "the S3 server (default: AWS_ENDPOINT_URL_S3, else AWS)")
    _add_option(parser, group, "--region", "NAME", str, "its region (default: AWS_REGION, the profile's, us-east-1)")
    _add_option(
        parser,
        group,
        "--addressing-style",
        "STYLE",
        argument_types.enum_choice(AddressingStyle),
        "where the bucket goes in a URL: auto (default), path or virtual",
    )
    _add_option(
        parser, group, "--ca-bundle", "FILE", str, "PEM file of trusted CAs (default: AWS_CA_BUNDLE, the system's)"
    )
    parser.add_option(group, "--anonymous", action="store_true", help="don't sign requests: for public buckets")


def _add_expect_digest_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "refuse any other revision; `tonnage resolve` prints it"
    _add_option(parser, group, "--expect-digest", "DIGEST", str, help_text)


def _add_segment_size_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "largest shard, as far as single tensors allow (default: up to 16 shards of 256Mi or more, 4Gi at most)"
    _add_option(parser, group, "--segment-size", "SIZE", argument_types.parse_size, help_text)


def _add_cache_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add_option(parser, group, "--cache", "DIR", str, "folder of the cache")


def _add_progress_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "on standard error: bar, json (a line a second), off, or auto: bar on a terminal, else json (default)"
    _add_option(parser, group, "--progress", "KIND", parse_progress_choice, help_text)


def _add_timeout_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add_option(
        parser,
        group,
        "--timeout",
        "TIME",
        argument_types.parse_duration,
        "give up after this long in all (default: never)",
    )


def _add_json_option(parser: Parser, group: argparse._ArgumentGroup, help_text: str) -> None:
    parser.add_option(group, "--json", action="store_true", help=help_text)


def _add_report_options(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add_option(parser, group, "--report", "FILE", str, "write the report there too")
    help_text = "write it there in at most 4096 bytes, in place: /dev/termination-log of a Kubernetes container"
    _add_option(parser, group, "--termination-log", "FILE", str, help_text)


def _add_pod_options(parser: Parser) -> None:
    group = parser.add_argument_group("in a pod")
    _add_option(
        parser, group, "--ready-file", "FILE", str, "made when the pod may go on, removed at the start; for a probe"
    )
    parser.add_option(
        group,
        "--status-file",
        allow_envvar=False,  # an application has a variable of this name, which must not become an option of ours
        metavar="FILE",
        help="tells applications how it ended: ready; or failed, the reason and the sentence, a line each",
    )
    help_text = "fail (default); or continue: let the pod start without its weights, and leave with 0 or --hold nothing"
    _add_option(parser, group, "--on-failure", "WHAT", parse_on_failure, help_text)


def _add_help_option(parser: Parser, group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this and exit")
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
