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


def run_samples(runner: Runner, feeds: Arrays, size: int, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Run any number of samples in batches of ``size``; a fixed last batch is filled up and cut again.

    Arrays go in and out with samples along the first axis. A result that has no such axis is taken from the
    last batch.
    """
    count = len(next(iter(feeds.values())))
    fixed = fixed_batch(runner.inputs)
    step = fixed or size
    if count == step:
        return runner.run(feeds, want)
    parts: list[dict[str, np.ndarray]] = []
    for start in range(0, count, step):
        part = {name: array[start : start + step] for name, array in feeds.items()}
        have = len(next(iter(part.values())))
        if fixed and have < fixed:
            part = {n: np.concatenate([a, np.repeat(a[-1:], fixed - have, axis=0)]) for n, a in part.items()}
        results = runner.run(part, want)
        fed = fixed or have
        parts.append({n: r[:have] if r.ndim and len(r) == fed else r for n, r in results.items()})
    if len(parts) == 1:
        return parts[0]
    return {
        name: np.concatenate([p[name] for p in parts]) if parts[0][name].ndim else parts[-1][name]
        for name in parts[0]
    }
