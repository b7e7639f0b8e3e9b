"""Builds the plan of a loader from a ``ModelWeights``. A plan contains no secret, so it can be part of a pod's spec."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import msgspec

from tonnage import contract
from tonnage_operator.api import modelweights as api
from tonnage_operator.api import source as sources
from tonnage_operator.api.status import StoreBehavior
from tonnage_operator.domain import naming, units

if TYPE_CHECKING:
    from tonnage_operator.api.status import SeenRevision
    from tonnage_operator.domain.installation import HostMedium, Installation
    from tonnage_operator.domain.observed.model_weights import ModelWeights

CA_FOLDER: Final = "/etc/tonnage/ca"
CA_FILE: Final = f"{CA_FOLDER}/ca.crt"
TOKEN_FOLDER: Final = "/var/run/secrets/tonnage.dev"  # noqa: S105
TOKEN_FILE: Final = f"{TOKEN_FOLDER}/token"
REPORT_CA_FILE: Final = f"{TOKEN_FOLDER}/ca.crt"
URLS_ENV: Final = "TONNAGE_URLS"
URLS_FOLDER: Final = "/etc/tonnage/urls"
URLS_FILE: Final = f"{URLS_FOLDER}/urls"

LINE_CHARACTERS: Final = 120
"""Lines of a plan in a pod are at most this long, except for longer single values."""
MAX_PLAN_BYTES: Final = 96 * 1024
"""Maximum size of a plan in a pod; Linux limits an environment variable to 128 KiB. Above it, objects are pinned by
digest."""

_STYLES: Final = {
    sources.AddressingStyle.AUTO: contract.AddressingStyle.AUTO,
    sources.AddressingStyle.PATH: contract.AddressingStyle.PATH,
    sources.AddressingStyle.VIRTUAL: contract.AddressingStyle.VIRTUAL,
}
_STYLES_IN_STATUS: Final = {style: found for found, style in _STYLES.items()}
_WEIGHTS: Final = {
    api.Weights.AUTO: contract.Weights.AUTO,
    api.Weights.TENSORIZER: contract.Weights.TENSORIZER,
    api.Weights.SAFETENSORS: contract.Weights.SAFETENSORS,
}
_VERIFY: Final = {
    api.Verify.BEST: contract.Verify.BEST,
    api.Verify.CRC32: contract.Verify.CRC32,
    api.Verify.SHA256: contract.Verify.SHA256,
    api.Verify.SIZE: contract.Verify.SIZE,
    api.Verify.NONE: contract.Verify.NONE,
}


def ca_bundle(source: sources.ModelSource) -> sources.CaBundle | None:
    """Returns the CA bundle of the source, if it has one."""
    location = source.location
    return location.ca_bundle if location else None


def parse_behavior(found: contract.StoreBehavior) -> StoreBehavior | None:
    """Returns how a store must be asked, as a report has it; None: in the ordinary way."""
    behavior = StoreBehavior(
        addressing_style=_STYLES_IN_STATUS[found.addressing_style], region=found.region, etag_only=found.etag_only
    )
    return behavior if behavior != StoreBehavior() else None


def _behavior(seen: SeenRevision | None) -> contract.StoreBehavior | None:
    if seen is None or seen.behavior is None:
        return None
    found = seen.behavior
    return contract.StoreBehavior(
        addressing_style=_STYLES[found.addressing_style], region=found.region, etag_only=found.etag_only
    )


def _source(
    weights: ModelWeights, objects: tuple[contract.ObjectPin, ...] | None, seen: SeenRevision | None = None
) -> contract.Source:
    """Returns the source for a plan. ``seen`` is the revision to load, if it is known."""
    spec = weights.spec
    ca = CA_FILE if ca_bundle(spec.source) else ""
    if s3 := spec.source.s3:
        return contract.S3Source(
            bucket=s3.bucket,
            prefix=s3.prefix,
            keys=s3.keys,
            endpoint=s3.endpoint or "",
            region=s3.region or "",
            addressing_style=_STYLES[s3.addressing_style],
            ca_bundle=ca,
            anonymous=bool(spec.credentials and spec.credentials.anonymous),
            requester_pays=s3.requester_pays,
            behavior=_behavior(seen),
            objects=objects,
        )
    if hub := spec.source.hub:
        commit = seen.objects[0].version_id if seen and seen.objects else ""
        return contract.HubSource(
            repo=hub.repo,
            revision=commit or hub.revision,
            endpoint=hub.endpoint or "",
            ca_bundle=ca,
            anonymous=bool(spec.credentials and spec.credentials.anonymous),
            objects=objects,
        )
    http = spec.source.http
    return contract.HttpSource(
        urls=http.urls if http else None,
        urls_file=URLS_FILE if http and http.urls_from else "",
        ca_bundle=ca,
        objects=objects,
    )


def file_selection(files: api.FilesSpec, wanted: tuple[int, ...] | None = None) -> contract.FileSelection:
    """Returns ``spec.files`` for a plan. ``wanted`` are the ranks to load; None means all."""
    ranks = None
    if files.ranks:
        ranks = contract.RankSelection(pattern=files.ranks.pattern, count=files.ranks.count, wanted=wanted)
    elif wanted is not None:
        ranks = contract.RankSelection(wanted=wanted)
    return contract.FileSelection(
        weights=_WEIGHTS[files.weights],
        tensors=files.tensors,
        companions=files.companions,
        exclude=files.exclude,
        ranks=ranks,
    )


def _host_medium(weights: ModelWeights, installation: Installation) -> HostMedium | None:
    """Returns the medium of the nodes that the entry is on; None for claims and emptyDir volumes."""
    shared = weights.spec.cache.delivery is api.Delivery.HOST_PATH
    return installation.media.get(weights.medium(installation)) if shared else None


def _limits(loader: api.LoaderSettings, host: HostMedium | None = None) -> contract.Limits:
    # A capacity makes the loader ask for room. Where only namespaces are limited, theirs is one that it can't exceed.
    limits = host.limits if host else None
    return contract.Limits(
        connections=loader.connections or 0,
        part_size=units.parse_quantity(loader.part_size) if loader.part_size else 0,
        bandwidth=units.parse_quantity(loader.bandwidth_limit) if loader.bandwidth_limit else 0,
        timeout=units.parse_duration(loader.timeout),
        min_free=host.min_free_bytes if host else 0,
        min_free_percent=host.min_free_percent if host else 0,
        capacity=(limits.capacity or limits.namespace_capacity) if limits else 0,
    )


def _reporting(installation: Installation) -> contract.Reporting | None:
    reports = installation.reports
    if not reports.url:
        return None
    return contract.Reporting(
        url=reports.url,
        ca_bundle=REPORT_CA_FILE if reports.ca_pem else "",
        token_file=TOKEN_FILE,
        interval=reports.interval,
    )


def _peers(weights: ModelWeights, installation: Installation) -> contract.PeerAccess | None:
    """Returns how a load uses peers; None for entries that nodes don't serve to others."""
    if not installation.has_peers or weights.spec.cache.delivery is not api.Delivery.HOST_PATH:
        return None
    return contract.PeerAccess(server_name=installation.peer_server_name)


def _identity(weights: ModelWeights) -> contract.Identity:
    return contract.Identity(
        namespace=weights.namespace, name=weights.name, uid=weights.uid, generation=weights.generation
    )


def build_resolve_plan(weights: ModelWeights, installation: Installation) -> contract.Plan:
    """Returns the plan of a resolve Job, without pins."""
    return contract.Plan(
        sources=(_source(weights, None),),
        expected_digest=weights.spec.revision.expected_digest or "",
        files=file_selection(weights.spec.files),
        limits=_limits(weights.spec.loader),
        reporting=_reporting(installation),
        identity=_identity(weights),
    )


def build_load_plan(
    weights: ModelWeights,
    seen: SeenRevision,
    installation: Installation,
    *,
    ranks: tuple[int, ...] | None = None,
    lists_objects: bool = True,
) -> contract.Plan:
    """Returns the plan that loads one revision.

    Args:
        weights: The object.
        seen: The revision. It is pinned by its objects, or by its digest if the list is too long for a plan.
        installation: Where to send reports.
        ranks: The ranks to load; None: all.
        lists_objects: False: pinned by its digest alone, for plans that leave the object's namespace. The loader lists
            the source, or reads the list in the entry, and compares.
    """
    pins = None
    if lists_objects and seen.objects is not None:
        pins = tuple(
            contract.ObjectPin(
                key=each.key, size=each.size, etag=each.etag, version_id=each.version_id, checksum=each.checksum
            )
            for each in seen.objects
        )

    def build(objects: tuple[contract.ObjectPin, ...] | None) -> contract.Plan:
        return contract.Plan(
            sources=(_source(weights, objects, seen),),
            entry=naming.cache_entry_name(seen.revision, weights.spec.cache),
            expected_digest=seen.digest,
            layout=naming.LAYOUTS[weights.spec.cache.layout],
            computed_buffers=naming.COMPUTED_BUFFERS[weights.spec.cache.computed_buffers],
            verify=_VERIFY[weights.spec.verify],
            verify_on_hit=weights.spec.verify_on_hit,
            files=file_selection(weights.spec.files, ranks),
            limits=_limits(weights.spec.loader, _host_medium(weights, installation)),
            reporting=_reporting(installation),
            peers=_peers(weights, installation),
            identity=_identity(weights),
        )

    plan = build(pins)
    return plan if len(plan_variable(plan).encode()) <= MAX_PLAN_BYTES else build(None)


@functools.lru_cache(maxsize=16)
def plan_variable(plan: contract.Plan) -> str:
    """Returns the plan as the value of a container's variable: JSON in lines that ``kubectl describe`` shows as such.

    The API server replaces ``$(NAME)`` and ``$$`` in values of variables, so dollar signs in it are doubled. The Jobs
    of one revision have the same plan on all nodes, so the latest texts are kept.
    """
    return escape_references(_in_lines(msgspec.to_builtins(plan), indent=""))


def escape_references(value: str) -> str:
    """Returns the value of a variable in which Kubernetes finds no reference to another one."""
    return value.replace("$", "$$")


def _in_lines(value: object, *, indent: str, name: str = "") -> str:
    """Returns JSON without spaces. An array or object that does not fit into a line has one for each element.

    Args:
        value: What msgspec encodes.
        indent: The spaces before the line.
        name: The JSON of the value's name and a colon, which are in the same line.
    """
    text = name + msgspec.json.encode(value).decode()
    if not isinstance(value, dict | list | tuple) or len(indent) + len(text) < LINE_CHARACTERS:
        return text
    inner = f"{indent} "
    if isinstance(value, dict):
        elements = [_in_lines(each, indent=inner, name=f'"{key}":') for key, each in value.items()]
    else:
        elements = [_in_lines(each, indent=inner) for each in value]
    separator = f",\n{inner}"
    return f"{name}{text[len(name)]}\n{inner}{separator.join(elements)}\n{indent}{text[-1]}"
