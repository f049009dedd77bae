"""Weight sharing: every weight one of a few values, chosen tensor by tensor or for groups of channels.

What a runtime takes of it differs. Core ML keeps codebook and indices (palettization: 1, 2, 3, 4, 6 or 8
bits, a codebook for each group from iOS 18 on) and so needs less memory and bandwidth; others compute with
the values as ordinary floats, for them only the file at rest becomes smaller (`codec.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.compress.ground import Ground, StepResult
from deploy.compress.kmeans import kmeans
from deploy.compress.step import Compressed, Step
from deploy.errors import UsageError
from deploy.execute.compare import prover
from deploy.graph.edit import constant, replace_everywhere
from deploy.graph.fuse import fuse
from deploy.graph.palette import Palette
from deploy.graph.summary import tensor_specs
from deploy.graph.weights import SMALLEST, large_weights, output_axis
from deploy.spec.compression import Cluster

_SPARSE = 0.25
"""Share of exact zeros from which they are not chance: they stay zero, as a value of their own."""


@dataclass(frozen=True)
class Clustered(Compressed):
    """``palettes`` by the name of the weight: what a plan keeps, and `codec.encode` writes."""

    palettes: dict[str, Palette] = field(default_factory=dict)


def check(step: Cluster, model: ir.Model, ground: Ground) -> None:
    """Raises UsageError where there is no weight large enough to share values."""
    del step, ground
    if not large_weights(model):
        raise UsageError(
            f"cluster: no weight of the model has {SMALLEST} numbers or more", hint="leave the step out"
        )


def run(step: Cluster, model: ir.Model, ground: Ground) -> StepResult:
    """The graph, what can be folded into weights folded, so that they keep the values that they share."""
    if ground.samples is not None:
        count = fixed_batch(tensor_specs(model.graph.inputs)) or 2
        feeds = next(ground.samples.batches(count)).feeds
        model = fuse(model, prover([feeds], ground.threads)).model
    found = cluster(model, step, seed=ground.seed)
    told = f"{len(found.palettes)} weights have {step.centres} values at most"
    if step.group is not None:
        told += f" for {step.group} channels each"
    return StepResult(found.graph, told, found.steps, tuple(found.palettes))


def cluster(
    model: ir.Model,
    settings: Cluster,
    *,
    seed: int = 0,
    importance: Mapping[str, np.ndarray] | None = None,
) -> Clustered:
    """A copy whose large float weights share values. ``importance`` of the shape of a weight, none negative,
    says how much the square of what each number is moved by counts (a Fisher information, the mean square
    of the inputs); each counts alike where it says nothing. A step's error is the squared sum of what moved
    over that of the weights, each times its importance."""
    copy = model.clone()
    palettes: dict[str, Palette] = {}
    steps = []
    for name, uses in large_weights(copy).items():
        array = constant(copy.graph.initializers[name])
        assert array is not None
        if not np.isfinite(array).all():
            steps.append(Step(name, "left as it is: it is not finite", False))
            continue
        worth = (importance or {}).get(name)
        palette = shared(array, settings, worth, output_axis(*uses[0], array.ndim), seed)
        if palette.stored_bytes >= array.nbytes:
            steps.append(Step(name, "left as it is: codebooks would take more than they save", False))
            continue
        moved = (palette.values().astype(np.float64) - array) ** 2
        power = array.astype(np.float64) ** 2
        if worth is not None and worth.any():
            moved, power = moved * worth, power * worth
        error = float(moved.sum() / max(power.sum(), 1e-300))
        groups, count = palette.codebook.shape
        what = f"{count} values" + (f" for each of {groups} groups" if groups > 1 else "")
        kept = settings.tolerance is None or error <= settings.tolerance
        steps.append(Step(name, what if kept else f"left as it is: {what} move it too far", kept, 0.0, error))
        if kept:
            palettes[name] = palette
            replace_everywhere(copy, copy.graph.initializers[name], palette.values())
    return Clustered(copy, tuple(steps), palettes)


def shared(
    array: np.ndarray, settings: Cluster, importance: np.ndarray | None, axis: int, seed: int = 0
) -> Palette:
    """The palette of one weight; groups are cut along ``axis``. Zeros stay zero where they are no chance."""
    size = settings.group
    grouped = size is not None and size < array.shape[axis]
    width = size if grouped and size else array.shape[axis]
    books, indices = [], np.empty(array.shape, np.uint8)
    for start in range(0, array.shape[axis], width):
        place = (slice(None),) * axis + (slice(start, start + width),)
        heavy = None if importance is None else importance[place]
        found, index = _codebook(array[place], settings.centres, heavy, seed)
        books.append(np.concatenate([found, np.repeat(found[-1:], settings.centres - len(found))]))
        indices[place] = index
    codebook = np.stack(books)
    used = int(indices.max()) + 1 if len(books) == 1 else settings.centres
    return Palette(codebook[:, :used], indices, axis if grouped else None, size or 0 if grouped else 0)


def _codebook(
    array: np.ndarray, centres: int, importance: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Values in ascending order, as the array's own type, and the index of each number."""
    heavy = importance if importance is not None and importance.any() else None
    sparse = array == 0
    if not _SPARSE <= sparse.mean() < 1:
        found = kmeans(array, centres, heavy, seed)
        return found.centres.astype(array.dtype), found.indices.astype(np.uint8)
    alive = ~sparse
    weights = None if heavy is None or not heavy[alive].any() else heavy[alive]
    found = kmeans(array[alive], centres - 1, weights, seed)
    place = int(np.searchsorted(found.centres, 0.0))
    indices = np.full(array.shape, place, np.uint8)
    indices[alive] = found.indices + (found.indices >= place)
    return np.insert(found.centres, place, 0.0).astype(array.dtype), indices
