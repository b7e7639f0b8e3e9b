"""Decides which rank's weights vLLM gets, in which form, and on which way they reach the device. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from tonnage.errors import FormatUnsupported, InvalidPlan
from tonnage.format.known_tensors import FUSED_EXPERTS_REMEDY, VLLM_MARKER, is_computed_buffer
from tonnage.format.tensor_names import KIND_BUFFER, short_repr

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

MAX_RANKS_OF_WHOLE_TENSORS = 2
"""Maximum number of ranks of which each moves all tensors over its own bus, at ring speed.

With more ranks it is faster that each moves only its own part, by vLLM's own copies: two GPUs of one host together get
about 70 GB/s by the ring, whatever their number, and each gets 4.5 GB/s of its own part by vLLM's copies."""
_SHOWN_NAMES = 5
_FUSED_EXPERTS = (".experts.gate_up_proj", ".experts.up_proj")


IF_POST_PROCESSED = (
    "If vLLM had post-processed these weights before it wrote them, as it does with quantized ones on a GPU, start it "
    """with --model-loader-extra-config '{"post_processed": true}'."""
)
"""What to do if weights don't fit a model that was just built."""


class EngineMismatch(InvalidPlan):
    """The weights don't fit how vLLM was started. The message has both, and what to change."""

    remedy = "Start vLLM as the message describes, or serialize the weights for this way of starting it."


class NotPostProcessed(FormatUnsupported):
    """vLLM can't take this model's weights after its own post-processing."""

    remedy = "Load with spec.cache.layout: Tensorizer (--layout tensorizer) and serve with --load-format tensorizer."


@dataclass(frozen=True, slots=True)
class ParallelSetup:
    """How vLLM was started.

    Attributes:
        tensor_rank: This worker's rank among those that share each tensor.
        tensor_ranks: Their number, ``--tensor-parallel-size``.
        pipeline_ranks: ``--pipeline-parallel-size``.
    """

    tensor_rank: int = 0
    tensor_ranks: int = 1
    pipeline_ranks: int = 1


def choose_rank(available: Collection[int], setup: ParallelSetup, *, label: str) -> int | None:
    """Returns the rank whose files this worker opens; None if the weights are not sharded by rank.

    Args:
        available: The ranks that the files have; a node may have only those of its own workers.
        setup: How vLLM was started.
        label: Names the weights in messages.

    Raises:
        EngineMismatch: The weights are of other ranks.
    """
    if not available:
        return None
    if setup.pipeline_ranks > 1:
        raise EngineMismatch(
            f"{label} is sharded by tensor-parallel rank, but vLLM was started with --pipeline-parallel-size "
            f"{setup.pipeline_ranks}. Start it without."
        )
    if max(available) >= setup.tensor_ranks:
        raise EngineMismatch(
            f"{label} has the weights of rank {max(available)}, but vLLM was started with --tensor-parallel-size "
            f"{setup.tensor_ranks}. Start it with --tensor-parallel-size {max(available) + 1}, or the number of ranks "
            "that the model was serialized for."
        )
    if setup.tensor_rank not in available:
        known = ", ".join(map(str, sorted(available)[:64]))
        raise EngineMismatch(
            f"{label} has no weights of rank {setup.tensor_rank}, only of {known}: it was serialized for another "
            f"--tensor-parallel-size than {setup.tensor_ranks}, or this node loaded other ranks."
        )
    return setup.tensor_rank


def check_embeddings(
    built: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], setup: ParallelSetup, *, label: str
) -> None:
    """Checks that a state of vLLM's modules was written for as many ranks as vLLM was started with.

    vLLM divides embeddings among ranks and never post-processes them, so their shapes show it. Of other weights,
    post-processed ones of any shape are taken.

    Args:
        built: The shapes of the model's embeddings.
        stored: The shapes in the files.
        setup: How vLLM was started.
        label: Names the weights in messages.

    Raises:
        EngineMismatch: An embedding has another shape in the files.
    """
    for name, shape in built.items():
        found = stored.get(name, shape)
        if found != shape:
            raise EngineMismatch(
                f"{label} was serialized for another --tensor-parallel-size than {setup.tensor_ranks}, or is another "
                f"model: {short_repr(name)} has the shape {found} in the files and {shape} in vLLM's model. Start vLLM "
                "with the --tensor-parallel-size that the model was serialized for."
            )


def is_state_of_vllm(names: Collection[str], rank: int | None) -> bool:
    """Returns whether the tensors have the names and shapes of vLLM's own modules, not of a checkpoint on a hub."""
    return VLLM_MARKER in names or rank is not None


def checkpoint_names(names: Iterable[str]) -> list[str]:
    """Returns the names that a model's ``load_weights`` expects: not vLLM's mark, and no buffers that it computes."""
    return [name for name in names if name != VLLM_MARKER and not is_computed_buffer(name, KIND_BUFFER)]


def find_fused_names(names: Iterable[str]) -> list[str]:
    """Returns the names of experts that transformers 5 has fused in memory."""
    return [name for name in names if name.endswith(_FUSED_EXPERTS)]


def explain_refusal(fused: Sequence[str], message: str, *, label: str) -> EngineMismatch:
    """Returns an error with the remedy: a model refused fused experts, and transformers has no mapping for them.

    Args:
        fused: Their names.
        message: The message of vLLM, or of transformers.
        label: Names the weights in messages.
    """
    return EngineMismatch(
        f"vLLM's model refused {label}: {message.partition('. ')[0]}. Its experts, such as {short_repr(fused[0])}, "
        "have names that transformers 5 uses in memory, not in checkpoints, and vLLM's transformers can't map them. "
        f"{FUSED_EXPERTS_REMEDY}"
    )


def find_transposed(
    built: Mapping[str, tuple[object, tuple[int, ...]]], stored: Mapping[str, tuple[int, ...]]
) -> set[str]:
    """Returns the matrices that vLLM had transposed when it post-processed them.

    It transposes by a view, which kernels expect, but files hold rows one after the other. A square matrix has the same
    shape either way, so those of one method of quantization are transposed if its others are.

    Args:
        built: The method and the shape of each parameter of a model that was just built.
        stored: The shapes in the files.
    """
    common = {name: (method, shape, stored[name]) for name, (method, shape) in built.items() if name in stored}
    matrices = {name: each for name, each in common.items() if len(each[1]) == len(each[2]) == 2}
    methods = {
        (method, name.rpartition(".")[2])
        for name, (method, shape, found) in matrices.items()
        if shape != found and shape == found[::-1]
    }
    return {
        name
        for name, (method, shape, found) in matrices.items()
        if shape == found[::-1] and (method, name.rpartition(".")[2]) in methods
    }


def check_state(missing: Collection[str], unexpected: Iterable[str], setup: ParallelSetup, *, label: str) -> None:
    """Checks the result of loading a state of vLLM's modules.

    Args:
        missing: Names that only the module has.
        unexpected: Names that only the weights have.
        setup: How vLLM was started.
        label: Names the weights in messages.

    Raises:
        EngineMismatch: Names are missing or unexpected, except vLLM's mark and buffers that it computes.
    """
    unknown = checkpoint_names(unexpected)
    if missing or unknown:
        raise EngineMismatch(
            f"{label} is the state of another model than the one that vLLM built with --tensor-parallel-size "
            f"{setup.tensor_ranks}: {_describe(missing)} missing, {_describe(unknown)} unknown. Serialize it with this "
            "version of vLLM and the same options."
        )


def _describe(names: Collection[str]) -> str:
    shown = ", ".join(map(short_repr, sorted(names)[:_SHOWN_NAMES]))
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{len(names)} tensors ({shown}{more})" if names else "none"


def moves_whole_tensors(tensor_ranks: int) -> bool:
    """Returns whether each rank shall move all tensors itself, at ring speed, instead of only its own part."""
    return tensor_ranks <= MAX_RANKS_OF_WHOLE_TENSORS


class Options(NamedTuple):
    """What ``--model-loader-extra-config`` has.

    Attributes:
        post_processed: Whether serialized weights were post-processed by vLLM; None: not given.
        wait_seconds: How long to wait for weights that are being loaded; None: not given.
        others: The options that are vLLM's own.
    """

    post_processed: bool | None
    wait_seconds: float | None
    others: dict[str, object]


def parse_options(extra: Mapping[str, object]) -> Options:
    """Splits ``--model-loader-extra-config``.

    Raises:
        EngineMismatch: ``post_processed`` is not a boolean, or ``wait_seconds`` not a number of seconds.
    """
    others = dict(extra)
    post_processed = others.pop("post_processed", None)
    wait_seconds = others.pop("wait_seconds", None)
    if post_processed is not None and not isinstance(post_processed, bool):
        raise EngineMismatch(
            f"post_processed must be true or false in --model-loader-extra-config, not {post_processed!r}."
        )
    if wait_seconds is not None and (
        isinstance(wait_seconds, bool) or not isinstance(wait_seconds, int | float) or not wait_seconds > 0
    ):
        raise EngineMismatch(
            f"wait_seconds must be a number of seconds in --model-loader-extra-config, not {wait_seconds!r}."
        )
    return Options(post_processed, wait_seconds, others)
