"""The texts of ``--help`` except the options: a summary, a description and examples of each command."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class CommandText(NamedTuple):
    """The texts of one command. ``more_help`` returns what follows the options; it may import much."""

    summary: str
    usage: str
    description: str
    more_help: Callable[[], str] | None = None


PROGRAM_DESCRIPTION = """\
Loads model weights, safetensors files or those of tensorizer (.tensors), from object storage into a
local cache, and verifies them. Inference engines read the cached files like a local model.

  tonnage load s3://models/llama-70b/ --cache /dev/shm/tonnage
"""

PROGRAM_EPILOG = """\
`tonnage COMMAND --help` shows examples and all options. Options can also be set as environment
variables named TONNAGE_<OPTION>: TONNAGE_CACHE=/dev/shm/tonnage, TONNAGE_VERIFY=sha256.
"""

_ENVIRONMENT = """\
environment:
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_CONFIG_FILE,
  AWS_SHARED_CREDENTIALS_FILE, AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE (IRSA), container and
  instance roles: credentials, found in the same order as by the AWS SDKs
  AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION, AWS_DEFAULT_REGION, AWS_CA_BUNDLE: the server
  HF_ENDPOINT, HF_TOKEN, HF_TOKEN_PATH, HF_HOME: the hub of hf:// and its token
  TONNAGE_CREDENTIALS_DIR: a folder, such as a mounted Secret, with files named like the variables
  HTTPS_PROXY, http_proxy (lower case, as in curl), NO_PROXY: proxies
  TONNAGE_<OPTION>: any option above, for example TONNAGE_CACHE, TONNAGE_PART_SIZE=32Mi,
  TONNAGE_ANONYMOUS=true, TONNAGE_EXCLUDE='*.bin,*.md'. The command line takes precedence.
"""

_LOAD_ENVIRONMENT = """\
  TONNAGE_PLAN: the file for --plan, or the plan's JSON itself
  TONNAGE_NODE, TONNAGE_POD: node and pod to name in the report, in Kubernetes
  TONNAGE_DEBUG=1: print a traceback with an InternalError
"""


def _more_about_load() -> str:
    from tonnage.cli.reasons_table import exit_code_lines

    codes = "\n".join(["    0 loaded, or found in the cache (hit)", *exit_code_lines()])
    return f"""\
output:
  Progress and messages go to standard error. The last line of standard output is the report, in
  JSON: outcome (loaded, hit, failed), reason, message, revision, path (the folder to give to an
  engine), bytes, downloaded_bytes, resumed_bytes, seconds, tensors, segments, retries, verified.

{_ENVIRONMENT}{_LOAD_ENVIRONMENT}
exit codes (docs/reference/reasons.md explains each, with a remedy):
{codes}
"""


def _more_about_sources() -> str:
    return f"{_ENVIRONMENT}\nexit codes: as in `tonnage load --help`\n"


def _more_about_caches() -> str:
    return "environment:\n  TONNAGE_CACHE: the folder for --cache\n\nexit codes: as in `tonnage load --help`\n"


COMMANDS: dict[str, CommandText] = {
    "load": CommandText(
        summary="load a model into a cache, and verify it during the transfer",
        usage=(
            "tonnage load SOURCE... --cache DIR [options]\n       tonnage load --plan FILE --cache DIR [options]\n"
            "       tonnage load SOURCE... --into DIR [options]\n       tonnage load (SOURCE... DIR)... [options]"
        ),
        description="""\
Downloads a model from object storage into a cache folder, with parallel connections, and verifies
the checksum of every tensor during the transfer. Give the report's `path` to an engine.

If the cache has the same revision already, the load is a hit and downloads nothing. A load that
was interrupted is resumed by the next one. Concurrent loads of one revision share one download.

examples:
  Load the weights below a prefix, with config and tokenizer, into shared memory:
    tonnage load s3://models/llama-70b/ --cache /dev/shm/tonnage

  Load one file from your own S3 server, and start an engine with it:
    path=$(tonnage load s3://models/tiny/model.tensors --cache /var/cache/tonnage \\
        --endpoint-url http://s3.storage:8333 | tail -n1 | jq -r .path)
    vllm serve "$path"

  Load half the ranks of a sharded model with at most 2 GiB per second, and keep it until SIGTERM:
    tonnage load s3://models/llama-tp8/ --cache /dev/shm/tonnage --ranks 0-3 \\
        --bandwidth-limit 2GiB --hold

  Load the files into a folder of your own; the second form is how KServe calls an initializer:
    tonnage load hf://Qwen/Qwen3-0.6B --into /mnt/models
    tonnage load s3://models/llama-70b/ /mnt/models
""",
        more_help=_more_about_load,
    ),
    "hold": CommandText(
        summary="keep loaded entries in use until SIGTERM",
        usage="tonnage hold ENTRY... [--cache DIR] [options]",
        description="""\
Keeps entries locked until SIGTERM or SIGINT, so that they are not removed. Needs no permission to
write to them: they may be mounted read-only. Takes about 10 MiB of memory.

In a pod, `tonnage load` ends when the model is in the cache, and this command runs beside the
engine: nothing there can change what other pods read.

examples:
  Hold an entry while an engine runs:
    tonnage hold /dev/shm/tonnage/r-3f9c2a71b0de & holder=$!
    vllm serve /dev/shm/tonnage/r-3f9c2a71b0de/model; kill $holder
""",
        more_help=_more_about_caches,
    ),
    "resolve": CommandText(
        summary="show the objects that a load would download, and their revision",
        usage="tonnage resolve SOURCE... [options]\n       tonnage resolve --plan FILE [options]",
        description="""\
Lists the objects that `tonnage load` would download now, with the name and digest of their
revision. Downloads nothing and needs no cache.

examples:
  List a model's objects and the name of its cache entry:
    tonnage resolve s3://models/llama-70b/

  Pin the revision: the load fails if an object changes before it:
    digest=$(tonnage resolve s3://models/llama-70b/ --json | jq -r .digest)
    tonnage load s3://models/llama-70b/ --cache /dev/shm/tonnage --expect-digest "$digest"
""",
        more_help=_more_about_sources,
    ),
    "inspect": CommandText(
        summary="show the tensors of a model's files without downloading the weights",
        usage="tonnage inspect SOURCE... [options]",
        description="""\
Shows the contents of .tensors and safetensors files: name, dtype, shape, size and offset of each
tensor; and the segments that a load would divide them into. Downloads only the index or header of
each file.

examples:
  Show all files below a prefix, with 20 tensors of each:
    tonnage inspect s3://models/llama-70b/

  Show every tensor of one file, or a file on this machine:
    tonnage inspect s3://models/tiny/model.tensors --tensors all
    tonnage inspect ./model.tensors

  Print names and shapes for a script:
    tonnage inspect s3://models/tiny/model.tensors --json | jq '.files[].tensors[] | {name, shape}'
""",
        more_help=_more_about_sources,
    ),
    "serialize": CommandText(
        summary="write .tensors files from a checkpoint, and verify them",
        usage="tonnage serialize SOURCE... TARGET [options]",
        description="""\
Writes a checkpoint as .tensors files, with a CRC-32 and a SHA-256 of each tensor, and copies its
config and tokenizer. One tensor is in memory at a time. Every file is read back by tensorizer and
compared with the source; one that was uploaded is then read from the bucket by a load.

A folder on this machine appears as a whole, by a rename. In a bucket, an object that is written
first and removed last makes loads refuse the target until everything in it is verified. The source
is never changed or deleted. Shards become one file, model-rank-0-part-0.safetensors and its other
parts model-rank-000.tensors. Needs: pip install 'tonnage[serialize]'

examples:
  Serialize a folder as save_pretrained wrote it:
    tonnage serialize ./llama-8b ./llama-8b-tensors

  Serialize a model in a bucket to another prefix, with at most 20 GB of scratch space for a file:
    tonnage serialize s3://models/llama-70b/ s3://models/llama-70b-tensors/ --scratch /scratch \\
        --file-size 20GB

  Serialize a state dict, encrypted:
    head -c 32 /dev/urandom > key
    tonnage serialize model.pt s3://models/secret/ --encryption-key key
""",
        more_help=_more_about_sources,
    ),
    "ls": CommandText(
        summary="list the entries of a cache",
        usage="tonnage ls --cache DIR [--json]",
        description="""\
Lists the entries of a cache: state, size, level of verification, time since the last use, and the
processes that use them. Processes in other containers are not listed by name.

examples:
  Show a table:
    tonnage ls --cache /dev/shm/tonnage

  Print the paths of complete entries:
    tonnage ls --cache /dev/shm/tonnage --json | jq -r '.entries[] | select(.state == "ready").path'
""",
        more_help=_more_about_caches,
    ),
    "verify": CommandText(
        summary="verify entries of a cache against their checksums",
        usage="tonnage verify ENTRY... --cache DIR [options]",
        description="""\
Reads entries of a cache again. Compares every tensor with the checksum in its source, and all
other bytes with the checksums that were computed when the entry was published. Changes nothing.
The exit code is 29 (CacheDamaged) if an entry differs.

examples:
  Verify an entry, by a unique prefix of its name:
    tonnage verify r-3f9 --cache /dev/shm/tonnage

  Compare only names and sizes of files, by the entry's path:
    tonnage verify /dev/shm/tonnage/r-3f9c2a71b0de --level size
""",
        more_help=_more_about_caches,
    ),
    "rm": CommandText(
        summary="remove entries of a cache that are not in use",
        usage="tonnage rm ENTRY... --cache DIR [--json]\n       tonnage rm --all --cache DIR [--json]",
        description="""\
Removes entries, without asking for confirmation: they can be loaded again. An entry that is in use
is not removed; the exit code is then 30 (CacheInUse), and the message names the processes that
hold it.

examples:
  Remove one entry, by a unique prefix of its name:
    tonnage rm r-3f9 --cache /dev/shm/tonnage

  Remove all entries that are not in use:
    tonnage rm --all --cache /dev/shm/tonnage
""",
        more_help=_more_about_caches,
    ),
    "plugin": CommandText(
        summary="copy the plugin for vLLM into a folder",
        usage="tonnage plugin DIR [--json]",
        description="""\
Copies this package and its metadata into a folder that a container of vLLM mounts, so that its
image doesn't need the package: with the folder in PYTHONPATH, vLLM has --load-format tonnage.

example, in an init container that shares the volume /plugin with vLLM:
  tonnage plugin /plugin
""",
    ),
    "peer": CommandText(
        summary="serve the entries of this node to loaders of other nodes",
        usage="tonnage peer serve --secrets DIR --media NAME=DIR... [options]",
        description="""\
Starts nginx, which serves the entries of this node's cache to loaders of other nodes over TLS,
until SIGTERM. A loader needs a ticket of Tonnage's controller, and access to the objects of the
entry. Nothing is written to the cache. The chart runs this on each node (peers.enabled).

example, with the files of the Secret tonnage-peer:
  tonnage peer serve --secrets /etc/tonnage/peer --media memory=/media/memory
""",
    ),
    "version": CommandText(
        summary="show the version",
        usage="tonnage version [--json]",
        description="Shows the version of Tonnage.\n\nexample, for bug reports:\n  tonnage version --json\n",
    ),
}
