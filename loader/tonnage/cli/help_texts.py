"""What ``--help`` says besides the options: for each command a summary, what it does, and examples to start from."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


def _no_epilog() -> str:
    return ""


class CommandText(NamedTuple):
    """The texts of one command. ``epilog`` is made only when it is to be shown, for it may need more modules."""

    summary: str
    usage: str
    description: str
    epilog: Callable[[], str] = _no_epilog


PROGRAM_DESCRIPTION = """\
Tonnage brings model weights that tensorizer serialized (.tensors files) from object storage into a
verified cache on this machine, where any engine reads them.

  tonnage load s3://models/llama-70b/ --cache /dev/shm/tonnage
"""

PROGRAM_EPILOG = """\
`tonnage COMMAND --help` has examples and all options. Every option can also be set in the
environment, as TONNAGE_ and its name: TONNAGE_CACHE=/dev/shm/tonnage, TONNAGE_VERIFY=sha256.
"""

_ENVIRONMENT = """\
environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_CONFIG_FILE,
  AWS_SHARED_CREDENTIALS_FILE, AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE (IRSA), container and
  instance roles: credentials, as every AWS tool finds them
  AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_CA_BUNDLE: the server
  TONNAGE_CREDENTIALS_DIR: a folder, such as a mounted Secret, with files of these names
  HTTPS_PROXY, http_proxy (in small letters, as curl has it), NO_PROXY: proxies
  TONNAGE_<OPTION>: any option above, for example TONNAGE_CACHE, TONNAGE_PART_SIZE=32Mi,
  TONNAGE_ANONYMOUS=true, TONNAGE_EXCLUDE='*.bin,*.md'. The command line has precedence.
"""

_LOAD_ENVIRONMENT = """\
  TONNAGE_PLAN: a file as in --plan, or the plan's JSON itself
  TONNAGE_NODE, TONNAGE_POD: are copied into the report, for Kubernetes
  TONNAGE_DEBUG=1: a traceback with an InternalError
"""


def _load_epilog() -> str:
    from tonnage.cli.reasons_table import exit_code_lines

    codes = "\n".join(["    0 loaded, or a hit", *exit_code_lines()])
    return f"""\
output:
  Progress and messages go to standard error. Standard output ends with one line of JSON, the
  report: outcome (loaded, hit, failed), reason, message, revision, path (the folder to give to an
  engine), bytes, downloaded_bytes, resumed_bytes, seconds, tensors, segments, retries, verified.

{_ENVIRONMENT}{_LOAD_ENVIRONMENT}
exit codes (docs/reference/reasons.md says what each means and what to do):
{codes}
"""


def _source_epilog() -> str:
    return f"{_ENVIRONMENT}\nexit codes: as in `tonnage load --help`\n"


def _cache_epilog() -> str:
    return (
        "Every option can also be set in the environment: TONNAGE_CACHE, …\nexit codes: as in `tonnage load --help`\n"
    )


COMMANDS: dict[str, CommandText] = {
    "load": CommandText(
        summary="bring a model into the cache, verified while it arrives",
        usage="tonnage load SOURCE... --cache DIR [options]\n       tonnage load --plan FILE --cache DIR [options]",
        description="""\
Brings a model from object storage into a cache folder: in parallel, every tensor's checksum
verified while it arrives. The report's `path` is what you give to an engine. A second load of the
same revision is a hit and downloads nothing; an interrupted one goes on where it stopped. Any
number of loads of one revision share one download.

examples:
  All .tensors files below a prefix, with config and tokenizer, into shared memory:
    tonnage load s3://models/llama-70b/ --cache /dev/shm/tonnage

  One file from a server of your own, the path handed to an engine:
    path=$(tonnage load s3://models/tiny/model.tensors --cache /var/cache/tonnage \\
        --endpoint-url http://s3.storage:8333 | tail -n1 | jq -r .path)
    vllm serve "$path"

  Half the ranks of a sharded model, at most 2 GiB a second, kept in use until SIGTERM:
    tonnage load s3://models/llama-tp8/ --cache /dev/shm/tonnage --ranks 0-3 \\
        --bandwidth-limit 2GiB --hold
""",
        epilog=_load_epilog,
    ),
    "resolve": CommandText(
        summary="show which objects a load would bring, and their revision",
        usage="tonnage resolve SOURCE... [options]\n       tonnage resolve --plan FILE [options]",
        description="""\
Lists the objects that `tonnage load` would bring, as the store has them now, with the revision's
name and digest. Nothing is downloaded and no cache is touched.

examples:
  What is there, and under which name would it be cached?
    tonnage resolve s3://models/llama-70b/

  Pin it: load exactly this, or nothing:
    digest=$(tonnage resolve s3://models/llama-70b/ --json | jq -r .digest)
    tonnage load s3://models/llama-70b/ --cache /dev/shm/tonnage --expect-digest "$digest"
""",
        epilog=_source_epilog,
    ),
    "inspect": CommandText(
        summary="show the tensors of .tensors files, without downloading them",
        usage="tonnage inspect SOURCE... [options]",
        description="""\
Shows what .tensors files hold: format version, tensors with dtype, shape, bytes and offset, and how
a load would cut them into segments (one shard each). Only the files' index is downloaded.

examples:
  All files below a prefix, 20 tensors of each:
    tonnage inspect s3://models/llama-70b/

  Every tensor of one file; on this machine too:
    tonnage inspect s3://models/tiny/model.tensors --tensors all
    tonnage inspect ./model.tensors

  Names and shapes for a script:
    tonnage inspect s3://models/tiny/model.tensors --json | jq '.files[].tensors[] | {name, shape}'
""",
        epilog=_source_epilog,
    ),
    "ls": CommandText(
        summary="list what is in a cache",
        usage="tonnage ls --cache DIR [--json]",
        description="""\
Lists the entries of a cache: state, size, how they were verified, when they were last used and by
whom they are held, as far as that can be seen from here.

examples:
  tonnage ls --cache /dev/shm/tonnage
  tonnage ls --cache /dev/shm/tonnage --json | jq -r '.entries[] | select(.state == "ready").path'
""",
        epilog=_cache_epilog,
    ),
    "verify": CommandText(
        summary="check entries of a cache against their checksums",
        usage="tonnage verify ENTRY... --cache DIR [options]",
        description="""\
Reads entries of the cache again and compares every tensor with the checksum that its source
stated, and all other bytes with those taken when the entry was made. Exit code 29 (CacheDamaged)
if something differs.

examples:
  By the beginning of its name:
    tonnage verify r-3f9 --cache /dev/shm/tonnage

  By its path, only names and sizes:
    tonnage verify /dev/shm/tonnage/r-3f9c2a71b0de --level size
""",
        epilog=_cache_epilog,
    ),
    "rm": CommandText(
        summary="remove entries of a cache that nobody uses",
        usage="tonnage rm ENTRY... --cache DIR [--json]\n       tonnage rm --all --cache DIR [--json]",
        description="""\
Frees the room of entries. One that is in use is refused, with the holders that can be seen from
here: exit code 30 (CacheInUse). No question is asked: what is removed can be loaded again.

examples:
  tonnage rm r-3f9 --cache /dev/shm/tonnage
  tonnage rm --all --cache /dev/shm/tonnage
""",
        epilog=_cache_epilog,
    ),
    "version": CommandText(
        summary="show the version",
        usage="tonnage version [--json]",
        description="Shows the version of Tonnage.\n\nexample:\n  tonnage version --json\n",
    ),
}
