"""The options of each command, with their help. Defaults are None: their meaning is decided elsewhere."""

from __future__ import annotations

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

from tonnage.cli import values
from tonnage.contract.plan import AddressingStyle, Layout, Verify

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from tonnage.cli.parser import Parser

PROGRESS_KINDS = ("auto", "bar", "json", "off")
FAILURE_MODES = ("fail", "continue")

_PLACE = "s3://bucket/key.tensors, s3://bucket/prefix/ or an http(s):// URL"


def add_load(parser: Parser) -> None:
    """``tonnage load``."""
    what = _what(parser, sources=f"{_PLACE}; several make one model", layout=True, ranks=True, plan=True)
    parser.option(
        what,
        "--cache",
        metavar="DIR",
        help="folder of the cache, made where it is missing; a tmpfs such as /dev/shm/tonnage or a folder on disk",
    )
    _checks(parser)
    _where_from(parser)
    speed = parser.add_argument_group("how fast (0 or absent: found out by itself)")
    number, size = values.whole_number, values.size
    _add(parser, speed, "--workers", "N", number(0, 256), "processes (default: one a processor, fewer for little)")
    _add(parser, speed, "--connections", "N", number(0, 4096), "connections of all of them together")
    _add(parser, speed, "--part-size", "SIZE", size, "bytes asked for at a time (default: 16Mi)")
    _segment_size(parser, speed)
    _add(parser, speed, "--bandwidth-limit", "SIZE", size, "bytes a second at most, such as 400MB (default: no limit)")
    _add(
        parser,
        speed,
        "--timeout",
        "TIME",
        values.duration,
        "give up after this long in all, in seconds or as 10m, 1h (default: never)",
    )
    after = parser.add_argument_group("output and afterwards")
    _progress(parser, after)
    _report(parser, after)
    parser.option(
        after,
        "--hold",
        action="store_true",
        help="after success keep the entry in use until SIGTERM, so that nobody removes it",
    )
    _in_a_pod(parser)
    _help(parser, after)


def add_resolve(parser: Parser) -> None:
    """``tonnage resolve``."""
    _what(parser, sources=f"{_PLACE}; several make one model", layout=True, ranks=True, plan=True)
    checks = parser.add_argument_group("how to check")
    _expect_digest(parser, checks)
    _where_from(parser)
    other = parser.add_argument_group("output")
    _timeout_of_requests(parser, other)
    _json(parser, other, "print the report (kind resolved) as one line of JSON")
    _report(parser, other)
    _help(parser, other)


def add_inspect(parser: Parser) -> None:
    """``tonnage inspect``."""
    what = _what(parser, sources=f"{_PLACE}, or a .tensors file on this machine", layout=True, ranks=True, plan=False)
    _segment_size(parser, what)
    _where_from(parser)
    other = parser.add_argument_group("output")
    parser.option(
        other,
        "--tensors",
        metavar="N",
        type=tensor_count,
        help="tensors shown of each file: a number, or all (default: 20; with --json always all)",
    )
    _timeout_of_requests(parser, other)
    _json(parser, other, "print everything as one line of JSON")
    _help(parser, other)


def add_ls(parser: Parser) -> None:
    """``tonnage ls``."""
    other = parser.add_argument_group("options")
    _cache(parser, other)
    _json(parser, other, "print the entries as one line of JSON")
    _help(parser, other)


def add_verify(parser: Parser) -> None:
    """``tonnage verify``."""
    which = parser.add_argument_group("which")
    which.add_argument("entries", nargs="+", metavar="ENTRY", help="name, beginning of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _cache(parser, other)
    parser.option(
        other,
        "--level",
        metavar="LEVEL",
        type=values.one_of(Verify),
        help="how far: size (names and sizes of files, instantly), crc32 (reads every byte; the default) or sha256",
    )
    _progress(parser, other)
    _json(parser, other, "print what was found as one line of JSON")
    _help(parser, other)


def add_rm(parser: Parser) -> None:
    """``tonnage rm``."""
    which = parser.add_argument_group("which")
    which.add_argument("entries", nargs="*", metavar="ENTRY", help="name, beginning of a name, or path of an entry")
    other = parser.add_argument_group("options")
    _cache(parser, other)
    parser.option(other, "--all", variable=False, action="store_true", help="every entry that nobody uses")
    parser.option(
        other,
        "--ignore-not-found",
        action="store_true",
        help="an entry that is not there is no failure: there is nothing to remove",
    )
    _json(parser, other, "print what was removed and what was not as one line of JSON")
    _help(parser, other)


def add_version(parser: Parser) -> None:
    """``tonnage version``."""
    other = parser.add_argument_group("options")
    _json(parser, other, "print it as one line of JSON, with the versions of what it is built on")
    _help(parser, other)


ADDERS: dict[str, Callable[[Parser], None]] = {
    "load": add_load,
    "resolve": add_resolve,
    "inspect": add_inspect,
    "ls": add_ls,
    "verify": add_verify,
    "rm": add_rm,
    "version": add_version,
}


def tensor_count(text: str) -> int:
    """Returns how many tensors to show; -1 for ``all``.

    Raises:
        ArgumentTypeError: It is neither a number nor ``all``.
    """
    return -1 if text.strip().lower() == "all" else values.whole_number(0, 10**9)(text)


def progress_kind(text: str) -> str:
    """Returns a way to show progress.

    Raises:
        ArgumentTypeError: It is none of them.
    """
    return _one_of(text, PROGRESS_KINDS)


def on_failure(text: str) -> str:
    """Returns what is to become of a pod whose load fails.

    Raises:
        ArgumentTypeError: It is none of the possibilities.
    """
    return _one_of(text, FAILURE_MODES)


def _one_of(text: str, words: tuple[str, ...]) -> str:
    word = text.strip().lower()
    if word not in words:
        raise ArgumentTypeError(f"{text!r} is none of {', '.join(words)}")
    return word


def _what(parser: Parser, *, sources: str, layout: bool, ranks: bool, plan: bool) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("what to load" if plan else "what to look at")
    group.add_argument("sources", nargs="*" if plan else "+", metavar="SOURCE", help=sources)
    if plan:
        _add(
            parser,
            group,
            "--plan",
            "FILE",
            str,
            "a plan (JSON) instead of SOURCE and all options that a plan has; - reads it from standard input",
        )
    parser.option(
        group,
        "--include",
        action="append",
        metavar="GLOB",
        help="repeatable. One that ends in .tensors: of the tensor files only these. Any other: these companions too "
        "(always brought: *.json *.txt *.model *.jinja tokenizer*)",
    )
    parser.option(group, "--exclude", action="append", metavar="GLOB", help="repeatable: leave these files out")
    if ranks:
        _add(
            parser,
            group,
            "--ranks",
            "LIST",
            values.ranks,
            "of a model in model-rank-NNN.tensors files only these, such as 0-3 or 0,2,5-7 (default: all)",
        )
    if layout:
        _add(
            parser,
            group,
            "--layout",
            "NAME",
            values.one_of(Layout),
            "form in the cache: safetensors, shards that any engine reads (default), or tensorizer, the .tensors files "
            "byte for byte",
        )
    return group


def _checks(parser: Parser) -> None:
    group = parser.add_argument_group("how to verify")
    parser.option(
        group,
        "--verify",
        metavar="LEVEL",
        type=values.one_of(Verify),
        help="crc32, every tensor's hash while it arrives (default); sha256, where the files state one; size; none",
    )
    _expect_digest(parser, group)


def _where_from(parser: Parser) -> None:
    group = parser.add_argument_group("where from (credentials come from the environment, see below)")
    _add(parser, group, "--endpoint-url", "URL", str, "the S3 server (default: AWS_ENDPOINT_URL_S3, else AWS)")
    _add(parser, group, "--region", "NAME", str, "its region (default: AWS_REGION, the profile's, us-east-1)")
    _add(
        parser,
        group,
        "--addressing-style",
        "STYLE",
        values.one_of(AddressingStyle),
        "where the bucket goes in a URL: auto (default), path or virtual",
    )
    _add(parser, group, "--ca-bundle", "FILE", str, "PEM file of trusted CAs (default: AWS_CA_BUNDLE, the system's)")
    parser.option(group, "--anonymous", action="store_true", help="don't sign requests: for public buckets")


def _expect_digest(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "refuse any other revision; `tonnage resolve` prints it"
    _add(parser, group, "--expect-digest", "DIGEST", str, help_text)


def _segment_size(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "largest shard, as far as single tensors allow (default: up to 16 shards of 256Mi or more, 4Gi at most)"
    _add(parser, group, "--segment-size", "SIZE", values.size, help_text)


def _cache(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add(parser, group, "--cache", "DIR", str, "folder of the cache")


def _progress(parser: Parser, group: argparse._ArgumentGroup) -> None:
    help_text = "on standard error: bar, json (a line a second), off, or auto: bar on a terminal, else json (default)"
    _add(parser, group, "--progress", "KIND", progress_kind, help_text)


def _timeout_of_requests(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add(parser, group, "--timeout", "TIME", values.duration, "give up after this long in all (default: never)")


def _json(parser: Parser, group: argparse._ArgumentGroup, help_text: str) -> None:
    parser.option(group, "--json", action="store_true", help=help_text)


def _report(parser: Parser, group: argparse._ArgumentGroup) -> None:
    _add(parser, group, "--report", "FILE", str, "write the report there too")
    help_text = "write it there in at most 4096 bytes, in place: /dev/termination-log of a Kubernetes container"
    _add(parser, group, "--termination-log", "FILE", str, help_text)


def _in_a_pod(parser: Parser) -> None:
    group = parser.add_argument_group("in a pod")
    _add(parser, group, "--ready-file", "FILE", str, "made when the pod may go on, removed at the start; for a probe")
    parser.option(
        group,
        "--status-file",
        variable=False,  # an application has a variable of this name, which must not become an option of ours
        metavar="FILE",
        help="tells applications how it ended: ready; or failed, the reason and the sentence, a line each",
    )
    help_text = "fail (default); or continue: let the pod start without its weights, and leave with 0 or --hold nothing"
    _add(parser, group, "--on-failure", "WHAT", on_failure, help_text)


def _help(parser: Parser, group: argparse._ArgumentGroup) -> None:
    group.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.set_defaults(from_environment=())


def _add(
    parser: Parser,
    group: argparse._ArgumentGroup,
    name: str,
    metavar: str,
    kind: Callable[[str], object],
    help_text: str,
) -> None:
    parser.option(group, name, metavar=metavar, type=kind, help=help_text)
