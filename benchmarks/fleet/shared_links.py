"""How flows share links in the simulated fleet. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHARE_ROUNDS = 4


def share(
    source: NDArray[np.int64], target: NDArray[np.int64], cap: NDArray[np.float64], links: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the rate of each flow: what is left of both of its links is divided evenly, again and again."""
    rates = np.zeros(len(source))
    growing = np.ones(len(source), dtype=bool)
    for _ in range(SHARE_ROUNDS):
        out = links - np.bincount(source, rates, minlength=len(links))
        into = links - np.bincount(target, rates, minlength=len(links))
        out_count = np.bincount(source, growing, minlength=len(links))
        into_count = np.bincount(target, growing, minlength=len(links))
        with np.errstate(divide="ignore", invalid="ignore"):
            more = np.minimum(out[source] / out_count[source], into[target] / into_count[target])
        more = np.where(growing, np.maximum(np.minimum(more, cap - rates), 0.0), 0.0)
        rates += more
        growing &= (more > 1e-3 * links[target] / 64) & (rates < cap)
        if not growing.any():
            break
    return rates
