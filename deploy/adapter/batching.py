"""Feeding many samples to a runner whose batch may be free or fixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploy.adapter.protocol import Arrays, Runner
from deploy.spec.tensors import TensorSpec


def fixed_batch(inputs: Sequence[TensorSpec]) -> int | None:
    """The batch size that the inputs prescribe, None where it is free."""
    sizes = [spec.shape[0] for spec in inputs if spec.shape]
    fixed = [size for size in sizes if isinstance(size, int)]
    return fixed[0] if fixed else None


def sample_count(feeds: Arrays) -> int:
    """How many samples there are; 1 where the arrays have no axis of samples in common: one inference."""
    counts = {len(array) if array.ndim else None for array in feeds.values()}
    count = counts.pop()
    return 1 if counts or count is None else count


def run_samples(runner: Runner, feeds: Arrays, size: int, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Run any number of samples in batches of ``size``; a fixed last batch is filled up and cut again.

    Arrays go in and out with samples along the first axis, maybe several rows of it to each. A result that
    has no such axis is taken from the last batch. Feeds without samples in common (a state of its own size, a
    scalar) are one inference, and run as they are.
    """
    count = sample_count(feeds)
    fixed = fixed_batch(runner.inputs)
    step = fixed or size
    if count == step or any(array.ndim == 0 or len(array) != count for array in feeds.values()):
        return runner.run(feeds, want)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, count, step):
        part = {name: array[start : start + step] for name, array in feeds.items()}
        have = len(next(iter(part.values())))
        if fixed and have < fixed:
            part = {n: np.concatenate([a, np.repeat(a[-1:], fixed - have, axis=0)]) for n, a in part.items()}
        parts.append(runner.run(part, want))
    fed = [fixed or min(step, count - start) for start in range(0, count, step)]
    return {name: _joined([part[name] for part in parts], fed, count) for name in parts[0]}


def _joined(parts: Sequence[np.ndarray], fed: Sequence[int], count: int) -> np.ndarray:
    """The parts one after the other, cut to ``count`` samples; the last where their rows are no samples."""
    if any(part.ndim == 0 or len(part) % samples for part, samples in zip(parts, fed, strict=True)):
        return parts[-1]
    rows = {len(part) // samples for part, samples in zip(parts, fed, strict=True)}
    if len(rows) > 1 or len({part.shape[1:] for part in parts}) > 1:
        return parts[-1]
    together = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return together[: count * rows.pop()]
