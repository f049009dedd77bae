"""Unstructured sparsity: single weights of small magnitude go, wherever they lie (Zhu and Gupta 2017).

An honest note. Zeros in no pattern make nothing faster that computes with dense kernels, as all artifacts
built here do: sparse kernels, where a runtime has some, take certain layers in forms of their own and pay at
high shares of zeros alone. What becomes smaller is the file at rest (`codec.py`), not the memory it runs in.
The schedule is made for training in between; without any, much less may go.

Lottery-ticket rewinding (Frankle and Carbin, ICLR 2019) sets what is left back to where it was early in
training and trains again from there. On larger networks it works from early checkpoints only, not from
initial weights (Frankle et al., ICML 2020), and needs the whole training data and as many epochs again; to
rewind the learning rate alone is about as good (Renda et al., ICLR 2020). An option for studies, no default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploy.compress.step import Compressed, Step
from deploy.graph.edit import constant, replace_weight
from deploy.graph.pattern import products

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class Schedule:
    """How much is sparse when: from ``initial`` at step ``begin`` to ``final`` at ``end`` (Zhu, Gupta)."""

    final: float
    begin: int
    end: int
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.final < 1:
            raise ValueError(f"sparsity goes up from 0 and stays below 1, not {self.initial} to {self.final}")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"a schedule ends after it begins, not from step {self.begin} to {self.end}")


def sparsity_at(step: int, schedule: Schedule) -> float:
    """The share of zeros at ``step``: fast at first, when there is much to spare, and slower towards the end.

    >>> [round(sparsity_at(step, Schedule(0.8, 0, 100)), 3) for step in (0, 25, 50, 100, 200)]
    [0.0, 0.463, 0.7, 0.8, 0.8]
    """
    done = min(max((step - schedule.begin) / (schedule.end - schedule.begin), 0.0), 1.0)
    return schedule.final + (schedule.initial - schedule.final) * (1 - done) ** 3


def share_in_round(number: int, rounds: int, final: float) -> float:
    """The share of zeros in round ``number``, from 1, of so many that end with ``final``.

    >>> [round(share_in_round(number, 4, 0.8), 2) for number in (1, 2, 3, 4)]
    [0.46, 0.7, 0.79, 0.8]
    """
    return sparsity_at(number, Schedule(final, 0, rounds))


def magnitude_masks(
    weights: Mapping[str, np.ndarray], sparsity: float, scope: Scope = "layer"
) -> dict[str, np.ndarray]:
    """False where weights go: in each the smallest ``sparsity`` of them, rounded down, or of all together.

    Raises ValueError for a sparsity outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is at least 0 and below 1, not {sparsity}")
    if scope == "layer":
        return {name: _largest(np.abs(array), sparsity) for name, array in weights.items()}
    flat = [np.abs(array).reshape(-1) for array in weights.values()]
    kept = _largest(np.concatenate(flat) if flat else np.empty(0), sparsity)
    parts = np.split(kept, np.cumsum([len(part) for part in flat])[:-1]) if flat else []
    return {
        name: part.reshape(array.shape) for (name, array), part in zip(weights.items(), parts, strict=True)
    }


def _largest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    kept = np.ones(scores.size, bool)
    kept[np.argsort(scores, axis=None, kind="stable")[: int(sparsity * scores.size)]] = False
    return kept.reshape(scores.shape)


def prune_magnitude(
    model: ir.Model, sparsity: float, scope: Scope = "layer", but: Collection[str] = ()
) -> Compressed:
    """A copy whose products have so many weights of zero, the smallest ones, ``but`` for nodes of these
    names. A step's error is the squared sum of what went over that of the weight."""
    copy = model.clone()
    places = {product.weight: product.node for product in products(copy) if product.node.name not in but}
    weights = {}
    for name, node in places.items():
        array = constant(node.inputs[1])
        assert array is not None
        weights[name] = array
    steps = []
    for name, kept in magnitude_masks(weights, sparsity, scope).items():
        square = weights[name].astype(np.float64) ** 2
        share = float(1 - kept.mean())
        error = float(square[~kept].sum() / max(square.sum(), 1e-300))
        what = f"{share:.1%} of the weights are zero, in no pattern: smaller at rest, no faster"
        steps.append(Step(places[name].name or "", what, share > 0, 0.0, error))
        if share > 0:
            replace_weight(copy, places[name], 1, weights[name] * kept)
    return Compressed(copy, tuple(steps))
