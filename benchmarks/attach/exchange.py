"""One model for all GPUs of a host, of which each process reads a part and sends it to the others.

NCCL sends between GPUs, through NVLink where there is one; without GPUs, Gloo does. Groups and their connections exist
before the clock starts, as those of an engine do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch


def divide(sizes: Mapping[str, int], ranks: int) -> list[list[str]]:
    """Divides tensors among ranks: the largest first, each to the rank that has the fewest bytes."""
    parts: list[list[str]] = [[] for _ in range(ranks)]
    bytes_of = [0] * ranks
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        rank = bytes_of.index(min(bytes_of))
        parts[rank].append(name)
        bytes_of[rank] += sizes[name]
    return parts


def exchange(
    path: Path, device: str, spec: dict[str, Any], _extra_results: dict[str, Any]
) -> Callable[[], dict[str, torch.Tensor]]:
    """Each rank copies its part by the iterator, which copies ahead while earlier tensors are sent."""
    import atexit

    import torch
    import torch.distributed as dist

    from tonnage.attach import open_weights, weights  # noqa: F401  # imported before the clock starts

    rank, ranks = spec["gpu"], spec["gpus"]
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(backend, init_method=f"file://{spec['rendezvous']}", rank=rank, world_size=ranks)
    atexit.register(dist.destroy_process_group)  # else a thread of Gloo may end the process with an abort
    connect = torch.zeros(1 << 20, device=device)
    for source in range(ranks):
        dist.broadcast(connect, src=source)

    def load() -> dict[str, torch.Tensor]:
        with open_weights(path, device=device) as opened:
            meta = opened.state_dict("meta")
            parts = divide({name: each.numel() * each.element_size() for name, each in meta.items()}, ranks)
            names = set(parts[rank])
            order = [[name for name in meta if name in set(part)] for part in parts]
            mine = opened.stream(device, keys=order[rank], progress="off")
            found: dict[str, torch.Tensor] = {}
            pending = []
            for turn in range(max(map(len, order))):
                for source in range(ranks):
                    if turn >= len(order[source]):
                        continue
                    name = order[source][turn]
                    if name in names:
                        arrived, tensor = next(mine)
                        assert arrived == name, (arrived, name)
                    else:
                        tensor = torch.empty(meta[name].shape, dtype=meta[name].dtype, device=device)
                    found[name] = tensor
                    if tensor.numel():  # as bytes, because Gloo does not know all dtypes
                        content = tensor.reshape(-1).view(torch.uint8)
                        pending.append(dist.broadcast(content, src=source, async_op=True))
            for work in pending:
                if work is not None:
                    work.wait()
        return found

    return load
